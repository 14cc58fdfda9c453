"""A loaded model and its answers: prompt in, typed events out."""
