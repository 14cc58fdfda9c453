"""How a model wishes to be sampled: generation_config.json, read as sampling parameters.

Contract: `default_sampling` returns keyword arguments of `SamplingParams`; what a caller gives itself goes over them.
With do_sample true the file's values hold, and transformers' defaults (temperature 1, top-k 50, top-p 1) where it is
silent; with do_sample false decoding is greedy; where the file does not say, as Mixtral's, temperature 0.7 and top-p
0.95. Neither torch nor a model is imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mixq.errors import ModelFileError, printable

WITHOUT_A_WISH: Mapping[str, float] = {"temperature": 0.7, "top_p": 0.95}
_TRANSFORMERS: Mapping[str, float] = {
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
}


def default_sampling(generation_config: Mapping[str, Any]) -> dict[str, float]:
    """Return the sampling parameters that a parsed generation_config.json asks for.

    Raises:
        ModelFileError: a value of the wrong kind; bounds are checked by `SamplingParams`.
    """
    do_sample = generation_config.get("do_sample")
    if do_sample is None:
        return dict(WITHOUT_A_WISH)
    if not isinstance(do_sample, bool):
        raise _bad("do_sample", do_sample, "true or false")
    if not do_sample:
        return {"temperature": 0.0}
    wished: dict[str, float] = {}
    for name, default in _TRANSFORMERS.items():
        value = generation_config.get(name)
        if value is None:
            value = default
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise _bad(name, value, "a number")
        if name == "top_k" and not isinstance(value, int):
            raise _bad(name, value, "a whole number")
        wished[name] = value
    return wished


def _bad(field: str, value: object, allowed: str) -> ModelFileError:
    return ModelFileError(f"generation_config.json: {field} is {printable(repr(value))}; it must be {allowed}.")
