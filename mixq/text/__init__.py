"""Text and token ids: the tokenizer, Mixtral's instruct prompt, decoding as text arrives, stop strings."""
