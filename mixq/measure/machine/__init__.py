"""Measures this computer and reports its problems."""
