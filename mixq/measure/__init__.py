"""Runs a model to learn something about it or about this computer."""
