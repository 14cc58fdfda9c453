"""The network: Mixtral and its dense relatives, layer by layer."""
