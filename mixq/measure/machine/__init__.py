"""Measures this computer and says what is wrong with it."""
