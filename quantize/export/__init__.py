"""Exports a checkpoint or model folder to the formats of other programs."""
