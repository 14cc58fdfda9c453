"""Text and token ids: tokenizers, chat templates, decoding while text arrives, stop strings."""
