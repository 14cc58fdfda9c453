"""The offline job: from a checkpoint to a model folder of 4-bit and 8-bit groups."""
