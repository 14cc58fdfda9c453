"""What a model would do on a computer that is described by figures."""
