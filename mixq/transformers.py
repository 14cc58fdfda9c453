"""The names that scripts for the transformers library use: see `mixq.engine.transformers`."""

from mixq.engine.transformers import AutoModelForCausalLM, AutoTokenizer, CausalLM, Encoding

__all__ = ["AutoModelForCausalLM", "AutoTokenizer", "CausalLM", "Encoding"]
