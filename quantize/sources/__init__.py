"""Where weights come from: one file per checkpoint form, one interface."""
