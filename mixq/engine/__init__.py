"""A loaded model and its answers: prompts in, typed events out."""
