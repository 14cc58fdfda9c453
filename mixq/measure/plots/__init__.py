"""Plots of recordings, benches, replays and model folders: the numbers, and the drawing."""
