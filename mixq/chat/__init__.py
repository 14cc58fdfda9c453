"""The terminal chat: it consumes events, and knows no tensors."""
