"""Predicts memory use and speed of a model on a described computer."""
