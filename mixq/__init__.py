"""mixq: Mixtral 8x7B, quantized and offloaded, on the computer you have."""
