"""Configurations as frozen dataclasses, checked when they are created.

Contract: `ModelConfig.from_dict` accepts the config.json of a Mixtral, Mistral or Llama 2 checkpoint (transformers'
keys, version 4 or 5) and refuses, by field, what the network of `mixq.model` does not compute. `RuntimeOptions` are the
shared flags of every command that loads a model. This module imports neither torch nor numpy.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from mixq.errors import REQUIRED, Fields, ModelFileError, UsageError, did_you_mean, printable

ARCHITECTURES = ("MixtralForCausalLM", "MistralForCausalLM", "LlamaForCausalLM")
DTYPES = ("bfloat16", "float16", "float32")


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The shape of a model, in the terms of transformers' config.json.

    `num_local_experts` is 0 for dense models (one feed-forward block per layer). `sliding_window` is the number of
    positions that a query sees, itself included; None means all. There may be several `eos_token_ids`.
    """

    architecture: str
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    num_local_experts: int
    num_experts_per_tok: int
    max_position_embeddings: int
    rope_theta: float
    rms_norm_eps: float
    sliding_window: int | None
    tie_word_embeddings: bool
    bos_token_id: int
    eos_token_ids: tuple[int, ...]
    dtype: str

    @property
    def is_moe(self) -> bool:
        """True if each layer has several experts and a router."""
        return self.num_local_experts > 0

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> ModelConfig:
        """Check a parsed config.json and return the model's shape.

        Raises:
            ModelFileError: an unknown architecture, a missing or impossible field, or a feature that the
                network does not compute (scaled rope, attention biases, another activation).
        """
        reader = _ConfigFields(raw, "config.json: ")
        architecture = reader.architecture()
        moe = architecture == "MixtralForCausalLM"
        heads = reader.size("num_attention_heads")
        hidden = reader.size("hidden_size")
        config = cls(
            architecture=architecture,
            hidden_size=hidden,
            intermediate_size=reader.size("intermediate_size"),
            num_hidden_layers=reader.size("num_hidden_layers", limit=1024),
            num_attention_heads=heads,
            num_key_value_heads=reader.size("num_key_value_heads", default=heads),
            head_dim=reader.size("head_dim", default=hidden // heads),
            vocab_size=reader.size("vocab_size"),
            num_local_experts=reader.size("num_local_experts", default=8, limit=1024) if moe else 0,
            num_experts_per_tok=reader.size("num_experts_per_tok", default=2) if moe else 0,
            max_position_embeddings=reader.size("max_position_embeddings", default=32768),
            rope_theta=reader.rope_theta(1e6 if moe else 1e4),
            rms_norm_eps=reader.number("rms_norm_eps", 1e-30, 1e12, default=1e-5),
            # 4.36-era Mixtral configs carry sliding_window 4096, which the model was not trained with.
            sliding_window=None if moe or raw.get("sliding_window") is None else reader.size("sliding_window"),
            tie_word_embeddings=reader.boolean("tie_word_embeddings", default=False),
            bos_token_id=reader.token_ids("bos_token_id", default=1)[0],
            eos_token_ids=reader.token_ids("eos_token_id", default=2),
            dtype=reader.dtype(),
        )
        reader.refuse_unsupported()
        config._check()
        return config

    def _check(self) -> None:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ModelFileError(
                f"config.json: num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}."
            )
        if self.head_dim % 2:
            raise ModelFileError(f"config.json: head_dim {self.head_dim} is odd; rotary embedding needs pairs.")
        if self.num_experts_per_tok > self.num_local_experts:
            raise ModelFileError(
                f"config.json: num_experts_per_tok {self.num_experts_per_tok} is more than "
                f"num_local_experts {self.num_local_experts}."
            )


class _ConfigFields(Fields):
    """The fields of a config.json."""

    def size(self, name: str, *, default: int = REQUIRED, limit: int = 2**31 - 1) -> int:
        return self.integer(name, 1, limit, default=default)

    def architecture(self) -> str:
        listed = self.values.get("architectures")
        name = listed[0] if isinstance(listed, list) and listed else None
        if name is None:
            kind = str(self.values.get("model_type", "")).lower()
            name = {"mixtral": ARCHITECTURES[0], "mistral": ARCHITECTURES[1], "llama": ARCHITECTURES[2]}.get(kind)
        if name not in ARCHITECTURES:
            shown = printable(name if name is not None else self.values.get("model_type"))
            raise ModelFileError(
                f"config.json: unknown architecture {shown!r}.", hint=f"mixq runs {', '.join(ARCHITECTURES)}."
            )
        return str(name)

    def token_ids(self, name: str, *, default: int) -> tuple[int, ...]:
        return self.integers(name, 0, 2**31 - 1, default=(default,), allowed="a token id or a list of token ids")

    def dtype(self) -> str:
        name = "dtype" if "dtype" in self.values else "torch_dtype"
        value = str(self.values.get(name) or "bfloat16").removeprefix("torch.")
        if value not in DTYPES:
            raise self.wrong(name, f"one of {', '.join(DTYPES)}")
        return value

    def rope_theta(self, default: float) -> float:
        """Transformers 4 keeps rope_theta at the top level, transformers 5 inside rope_parameters."""
        newer = self.values.get("rope_parameters")
        has_newer = isinstance(newer, Mapping) and newer.get("rope_theta") is not None
        fields = self.object("rope_parameters") if has_newer else self
        return fields.number("rope_theta", 1e-30, 1e12, default=default)

    def refuse_unsupported(self) -> None:
        self.one_of("hidden_act", ("silu",), default="silu")
        for name in ("attention_bias", "mlp_bias"):
            if self.values.get(name):
                raise self.wrong(name, "false: biases are not supported")
        for name in ("rope_scaling", "rope_parameters"):
            scaling = self.values.get(name)
            kind = scaling.get("rope_type", scaling.get("type")) if isinstance(scaling, Mapping) else None
            if kind not in (None, "default"):
                raise self.wrong(name, "null or of type 'default': scaled rotary embeddings are not supported")


DEVICES = ("auto", "cpu", "cuda", "sim")
KV_DTYPES = ("bf16", "int8")
MISS_MODES = ("auto", "cpu", "fetch")
CACHE_POLICIES = ("lru", "lfu", "static", "random")
TEMPLATES = ("mistral-v1", "mistral-v3", "chatml", "alpaca", "vicuna", "llama-2", "none")

PREFILL_CHUNK = 512
"""Most tokens of a prompt in one forward pass, which bounds activations and attention mask."""


@dataclass(frozen=True, slots=True)
class RuntimeOptions:
    """How to run a model: the shared flags of every command that loads one.

    Attributes:
        device: one of `DEVICES`; auto takes the first CUDA GPU, or the CPU without one.
        vram, ram: byte budgets; None means all free memory.
        context: positions to reserve KV cache for; capped by the model's maximum.
        sequences: KV caches to reserve: the conversations that a server answers at the same time or keeps.
        threads: CPU threads; None means physical cores, or one if the matrices are too small to share.
        kv: storage type of the KV cache.
        miss: what to do with an expert that is not in GPU memory.
        cache_policy: which expert to evict.
        own_policy: a user's class that decides instead (`mixq.experts.own_policy`); `from_kwargs` takes it as
            cache_policy.
        quota: a file of expert slots per layer (`mixq.experts.quota`); None gives each layer the same number.
        seed: of the sampler; None takes a random one.
        exact: compute in float32 throughout (parity tests; slow).
        template: the chat template, one of `TEMPLATES`; None takes the model's.
        sim_bandwidth: bytes per second of copies with device sim; None for the speed of memory.
        sim_latency: seconds added to each copy with device sim.
    """

    device: str = "auto"
    vram: int | None = None
    ram: int | None = None
    context: int = 8192
    sequences: int = 1
    threads: int | None = None
    kv: str = "bf16"
    miss: str = "auto"
    cache_policy: str = "lru"
    own_policy: Callable[..., Any] | None = None
    quota: str | None = None
    seed: int | None = None
    exact: bool = False
    template: str | None = None
    sim_bandwidth: int | None = None
    sim_latency: float = 0.0

    def __post_init__(self) -> None:
        checked = Fields({field.name: getattr(self, field.name) for field in fields(self)}, error=UsageError)
        for name, allowed in (
            ("device", DEVICES),
            ("kv", KV_DTYPES),
            ("miss", MISS_MODES),
            ("cache_policy", CACHE_POLICIES),
            ("template", TEMPLATES),
        ):
            if name != "template" or self.template is not None:
                checked.one_of(name, allowed)
        for name, low, high in (
            ("context", 1, 2**31 - 1),
            ("sequences", 1, 8),
            ("threads", 1, 1024),
            ("vram", 1, 2**60),
            ("ram", 1, 2**60),
            ("seed", 0, 2**63 - 1),
            ("sim_bandwidth", 1, 2**60),
        ):
            if getattr(self, name) is not None or name in ("context", "sequences"):
                checked.integer(name, low, high)
        if self.own_policy is not None and not callable(self.own_policy):
            raise UsageError(
                f"own_policy is {printable(repr(self.own_policy))}; cache_policy must be a name or a class."
            )
        if self.quota is not None and (not isinstance(self.quota, str) or not self.quota):
            raise UsageError(f"quota is {printable(repr(self.quota))}; it must be the name of a file.")
        checked.number("sim_latency", 0, 1)  # seconds

    @classmethod
    def from_kwargs(cls, **options: Any) -> RuntimeOptions:
        """Build options from keyword arguments, refusing unknown names with a suggestion."""
        known = [f.name for f in fields(cls)]
        for name in options:
            if name not in known:
                raise UsageError(f"unknown option {printable(name)!r}." + did_you_mean(name, known))
        for budget in ("vram", "ram", "sim_bandwidth"):
            if isinstance(options.get(budget), str):
                options[budget] = parse_size(options[budget])
        if isinstance(options.get("quota"), os.PathLike):
            options["quota"] = os.fspath(options["quota"])
        if callable(options.get("cache_policy")):
            options["own_policy"] = options.pop("cache_policy")
        return cls(**options)


_UNITS = {"": 1, "b": 1} | {
    f"{prefix}{suffix}": base**power
    for power, prefix in enumerate("kmgt", start=1)
    for suffix, base in (("", 1000), ("b", 1000), ("ib", 1024))
}


def parse_size(text: str) -> int:
    """Return the bytes of '8GB', '512MiB' or '1000000'; units are decimal, those with an i binary."""
    match = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,15})?)\s*([a-zA-Z]*)\s*", text)
    if not match or match[2].lower() not in _UNITS:
        raise UsageError(f"{printable(text)!r} is not a size.", hint="Write it as 8GB, 512MiB or a number of bytes.")
    return int(float(match[1]) * _UNITS[match[2].lower()])


def format_size(count: float) -> str:
    """Return bytes in decimal units, as 25.3 GB."""
    if count < 1000:
        return f"{count:.0f} B"
    for unit in ("kB", "MB", "GB"):
        count /= 1000
        if count < 1000:
            return f"{count:.1f} {unit}"
    return f"{count / 1000:.1f} TB"


def format_duration(seconds: float) -> str:
    """Return a time as 0.3 s, 4 min 12 s, or 2 h 5 min."""
    if round(seconds) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, left = divmod(minutes, 60)
    return f"{hours} h {left} min" if hours else f"{minutes} min {rest} s"
