"""Presets, the demo model and its training script; shipped as `mixq.models`."""
