"""The prompt suite: the classical hand tests of a Mixtral review, each with an automatic check.

`questions` has the texts, `checks` says of an answer whether it is right, `run` puts the questions to a model.
"""
