"""Bytes on disk: layouts of the four schemes, the bounded safetensors reader, model folders and their writer."""
