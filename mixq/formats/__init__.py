"""File formats: layouts of the four schemes, a bounded safetensors reader, model folders and their writer."""
