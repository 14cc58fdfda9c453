"""The prompt suite: the classical hand tests of a Mixtral review, each with an automatic check.

`questions` has the prompts, `checks` judges answers, `run` asks a model.
"""
