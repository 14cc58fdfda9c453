"""Measurements of a model, and of this computer."""
