"""The fields that OpenAI's two interfaces share, and what becomes of them: sampling parameters and requests.

Contract: bounds are OpenAI's where it has some. What is left out is the model's own wish (generation_config.json), as
in the terminal. `top_k`, `min_p`, `repetition_penalty` and `mixq` are extensions; `random_seed` and `safe_prompt` are
Mistral's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mixq.engine.sampling import SamplingParams
from mixq.server import fields
from mixq.server.errors import bad_field
from mixq.server.fields import Field
from mixq.text.grammar import GrammarSpec

MOST_CHOICES = 8
MOST_STOPS, LONGEST_STOP = 16, 256
MOST_LOGPROBS = 20

NO_TOOLS = "Mixtral 8x7B has no format for tools"

EXTENSION: fields.Schema = {
    "experts": Field(fields.flag, default=False),
    "cache": Field(fields.flag, default=True),
}

SHARED: fields.Schema = {
    "model": Field(fields.text),
    "temperature": Field(fields.number(0, 2), nullable=True),
    "top_p": Field(fields.number(0, 1), nullable=True),
    "top_k": Field(fields.whole(0, 2**31 - 1)),
    "min_p": Field(fields.number(0, 1)),
    "repetition_penalty": Field(fields.number(0.01, 100)),
    "presence_penalty": Field(fields.number(-2, 2), nullable=True),
    "frequency_penalty": Field(fields.number(-2, 2), nullable=True),
    "logit_bias": Field(fields.biases, default={}, nullable=True),
    "seed": Field(fields.whole(0, 2**63 - 1), nullable=True),
    "random_seed": Field(fields.whole(0, 2**63 - 1), nullable=True),
    "stop": Field(fields.texts(MOST_STOPS, LONGEST_STOP), default=(), nullable=True),
    "n": Field(fields.whole(1, MOST_CHOICES), default=1, nullable=True),
    "stream": Field(fields.flag, default=False, nullable=True),
    "stream_options": Field(
        fields.nested({"include_usage": Field(fields.flag, default=False), **fields.harmless("include_obfuscation")}),
        nullable=True,
    ),
    "mixq": Field(fields.nested(EXTENSION)),
    **fields.harmless("user", "metadata", "service_tier", "safety_identifier", "prompt_cache_key"),
    **fields.refused("nothing is stored here", "store", neutral=(False,)),
    **fields.refused("prompts are not changed", "safe_prompt", neutral=(False,)),
}


@dataclass(frozen=True, slots=True)
class Extension:
    """What the field `mixq` asks for.

    Attributes:
        given: whether it is there at all.
        experts: tell which experts answered for each token.
        cache: take over what a kept conversation shares.
    """

    given: bool = False
    experts: bool = False
    cache: bool = True

    @classmethod
    def of(cls, value: Mapping[str, Any] | None) -> Extension:
        return cls() if value is None else cls(True, value["experts"], value["cache"])


def sampling(values: Mapping[str, Any], wished: Mapping[str, float], *, seed: int | None) -> dict[str, Any]:
    """Return the sampling parameters of a request, without max_tokens and logprobs.

    Args:
        values: fields of `SHARED`.
        wished: the model's own.
        seed: stands for one that is not given.

    Raises:
        RequestError: two seeds.
    """
    if None not in (values["seed"], values["random_seed"]) and values["seed"] != values["random_seed"]:
        raise bad_field("random_seed", "seed and random_seed are given, and differ; give one.")
    seeds = [s for s in (values["seed"], values["random_seed"], seed) if s is not None]
    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
    given = {name: values[name] for name in names if values[name] is not None}
    if given.get("top_p") == 0:
        raise bad_field("top_p", "top_p is 0; it must be above 0. For the likeliest token give temperature 0.")
    bias = values["logit_bias"]
    return {**wished, **given, "seed": seeds[0] if seeds else None, "stop": values["stop"], "logit_bias": bias}


def choice(params: Mapping[str, Any], index: int) -> SamplingParams:
    """Return the parameters of a request's choice number `index`; each has a seed of its own, or all were the same."""
    seed = params["seed"]
    return SamplingParams.from_kwargs(**{**params, "seed": None if seed is None else (seed + index) % 2**63})


RESPONSE_FORMAT: fields.Schema = {
    "type": Field(fields.one_of("text", "json_object", "json_schema"), required=True),
    "json_schema": Field(
        fields.nested(
            {
                "name": Field(fields.text),
                "schema": Field(fields.mapping),
                "schema_definition": Field(fields.mapping),  # Mistral's name for it
                "strict": Field(fields.flag, nullable=True),
                **fields.harmless("description"),
            }
        ),
        nullable=True,
    ),
}


def grammar(value: Mapping[str, Any] | None) -> GrammarSpec | None:
    """Return what `response_format` wants the text to be.

    Raises:
        RequestError: json_schema without a schema.
    """
    if value is None or value["type"] == "text":
        return None
    if value["type"] == "json_object":
        return GrammarSpec()
    wanted = value["json_schema"] or {}
    schema = wanted.get("schema") or wanted.get("schema_definition")
    if schema is None:
        raise bad_field(
            "response_format.json_schema.schema", "The field response_format.json_schema.schema is missing."
        )
    return GrammarSpec(schema)
