"""The prompt suite: the test questions of a published Mixtral review, each with an automatic check.

`questions` has the prompts, `checks` judges answers, `run` asks a model.
"""
