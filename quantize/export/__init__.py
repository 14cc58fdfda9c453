"""A checkpoint or model folder in the forms of other programs."""
