"""Accelerators: a GPU, or one simulated on the CPU."""
