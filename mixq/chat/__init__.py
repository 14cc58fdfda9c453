"""The terminal chat: shows the engine's events; uses no tensors."""
