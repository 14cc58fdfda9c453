"""The terminal chat: it consumes the engine's events and knows no tensors."""
