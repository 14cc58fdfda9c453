"""Sources of weights: one module per checkpoint format, with the interface `source.Source`."""
