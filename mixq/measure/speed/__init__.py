"""Measuring speed: synthetic models of true sizes, prompt and decode speed beside the bandwidth of the same run."""
