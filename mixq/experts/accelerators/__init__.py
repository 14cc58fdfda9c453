"""Accelerators: a GPU, or one that the host simulates."""
