"""Where weights come from: one module per format on disk, all behind `source.Source`."""
