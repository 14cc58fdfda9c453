"""config.json's `quantization_config`: the scheme of each linear layer.

Contract: three methods are read. "mixq" is this project's (mixq/README.md): regexes over whole layer names, the
first match applies. "compressed-tensors" is read if it is pack-quantized with symmetric int4 or int8 groups, by that
library's matching rules (compressed_tensors/utils/match.py, version 0.20), and written so that transformers, vLLM and
SGLang load it. "bitsandbytes" is read only, for nf4. `patterns` checks the patterns, which come from files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mixq.errors import Fields, ModelFileError, UsageError, printable
from mixq.formats.nl4 import DEFAULT_TABLE, is_table
from mixq.formats.patterns import compile_pattern
from mixq.formats.scheme import Scheme

VERSION = 1
EXPERTS_TARGET = r"re:.*block_sparse_moe\.experts\..*"
"""Must not end in w1|w2|w3: SGLang looks an expert's scheme up under gate_proj, up_proj and down_proj."""
ATTENTION_TARGET = r"re:.*self_attn\..*_proj$"
MLP_TARGET = r"re:.*\.mlp\..*_proj$"
DEFAULT_IGNORE = ("lm_head", r"re:.*block_sparse_moe\.gate$")

PACK_QUANTIZED = "pack-quantized"
AS_IT_IS = "bf16"
"""Instead of a scheme: layers that match the pattern are not quantized."""

MAX_TARGETS = 4096
MAX_PATTERNS = 32


@dataclass(frozen=True, slots=True)
class QuantizationConfig:
    """The scheme of each linear layer.

    Raises:
        ModelFileError: an invalid pattern, or one for which matching could take long.
    """

    method: str  # "mixq", "compressed-tensors" or "bitsandbytes"
    # by target; None (mixq only): not quantized. For mixq a target is a regex over the whole name. For
    # compressed-tensors it is a module name, "re:" and a regex over the name's beginning, or the class name "Linear".
    schemes: Mapping[str, Scheme | None]
    table: tuple[int, ...] = DEFAULT_TABLE  # nl4's 16 values; the default table if the folder has no nl4
    ignore: tuple[str, ...] = ()  # targets that are not quantized (compressed-tensors)
    _patterns: dict[str, re.Pattern[str]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if len(self.schemes) + len(self.ignore) > MAX_TARGETS:
            raise ModelFileError(f"config.json: quantization_config has more than {MAX_TARGETS} targets.")
        patterns: dict[str, re.Pattern[str]] = {}
        for target in (*self.schemes, *self.ignore):
            if self.method == "mixq":
                patterns[target] = compile_pattern(target, "config.json: schemes")
            elif target.startswith("re:"):
                patterns[target] = compile_pattern(target.removeprefix("re:"), "config.json: targets")
        if len(patterns) > MAX_PATTERNS:
            raise ModelFileError(f"config.json: quantization_config has more than {MAX_PATTERNS} patterns.")
        object.__setattr__(self, "_patterns", patterns)

    @classmethod
    def mixq(cls, schemes: Mapping[str, Scheme | None], table: Sequence[int] = DEFAULT_TABLE) -> QuantizationConfig:
        """Return a config of mixq's method for {regex over whole layer names: scheme}; the first match applies."""
        return cls("mixq", dict(schemes), tuple(table))

    @classmethod
    def compressed_tensors(
        cls, schemes: Mapping[str, Scheme], ignore: Sequence[str] = DEFAULT_IGNORE
    ) -> QuantizationConfig:
        """Return a compressed-tensors config for {target: w4 or w8 scheme}."""
        for scheme in schemes.values():
            if scheme.name not in ("w4", "w8"):
                raise UsageError(f"compressed-tensors cannot hold {scheme}; it can hold w4 and w8.")
        return cls("compressed-tensors", dict(schemes), ignore=tuple(ignore))

    def scheme_for(self, linear_name: str) -> Scheme | None:
        """Return the scheme of a linear layer; None if it is not quantized."""
        if self.method == "mixq":
            for target, scheme in self.schemes.items():
                if self._patterns[target].fullmatch(linear_name):
                    return scheme
            return None
        if self.method == "bitsandbytes":
            return self.schemes["Linear"]  # ModelFolder sees from the tensors which linear layers are packed
        if any(self._matches(target, linear_name) or target == "Linear" for target in self.ignore):
            return None
        for target in sorted(self.schemes, key=lambda t: ("re:" in t, t)):
            if self._matches(target, linear_name):
                return self.schemes[target]
        return self.schemes.get("Linear")

    def _matches(self, target: str, name: str) -> bool:
        pattern = self._patterns.get(target)
        return target == name if pattern is None else pattern.match(name) is not None

    @classmethod
    def parse(cls, raw: object) -> QuantizationConfig | None:
        """Check and return config.json's quantization_config; None if there is none.

        Raises:
            ModelFileError: a method, format or option that mixq does not read, named by its field.
        """
        if raw is None:
            return None
        if not isinstance(raw, Mapping):
            raise ModelFileError("config.json: quantization_config is not an object.")
        method, fields = raw.get("quant_method"), Fields(raw, "config.json: quantization_config.")
        if method == "mixq":
            return _parse_mixq(fields)
        if method == "compressed-tensors":
            return _parse_compressed_tensors(fields)
        if method == "bitsandbytes":
            return _parse_bitsandbytes(fields)
        raise ModelFileError(
            f"config.json: quant_method is {printable(repr(method))}, which mixq cannot run.",
            hint="Convert it with mixq quantize (GPTQ, AWQ), or use a mixq, compressed-tensors (pack-quantized), "
            "bitsandbytes (nf4) or unquantized folder.",
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the object to write as config.json's quantization_config."""
        if self.method == "mixq":
            return {
                "quant_method": "mixq",
                "version": VERSION,
                "table": list(self.table),
                "schemes": {
                    target: {"scheme": scheme.name, "group_size": scheme.group_size} if scheme else {"scheme": AS_IT_IS}
                    for target, scheme in self.schemes.items()
                },
            }
        if self.method != "compressed-tensors":
            raise ValueError(f"a {self.method} config is read, never written")
        groups: dict[Scheme, list[str]] = {}
        for target, scheme in self.schemes.items():
            if scheme is not None:
                groups.setdefault(scheme, []).append(target)
        return {
            "quant_method": "compressed-tensors",
            "format": PACK_QUANTIZED,
            "quantization_status": "compressed",
            "config_groups": {
                f"group_{i}": {
                    "targets": targets,
                    "weights": {
                        "num_bits": scheme.bits,
                        "type": "int",
                        "symmetric": True,
                        "strategy": "group",
                        "group_size": scheme.group_size,
                        "dynamic": False,
                    },
                    "input_activations": None,
                    "output_activations": None,
                    "format": PACK_QUANTIZED,
                }
                for i, (scheme, targets) in enumerate(groups.items())
            },
            "ignore": list(self.ignore),
            "kv_cache_scheme": None,
            "global_compression_ratio": None,
        }


def _scheme(name: str, fields: Fields) -> Scheme:
    """Return the scheme of that name with the group size in `fields`."""
    try:
        return Scheme(name, fields.integer("group_size"))
    except UsageError as error:
        raise ModelFileError(f"{fields.where.rstrip('.')}: {error.message}") from None


def _parse_mixq(fields: Fields) -> QuantizationConfig:
    fields.one_of("version", (VERSION,))
    fields.only(("quant_method", "version", "table", "schemes"))
    table = fields.values.get("table", list(DEFAULT_TABLE))
    if not is_table(table):
        raise fields.wrong("table", "16 ascending whole numbers from -128 to 127")
    entries = fields.object("schemes")
    schemes: dict[str, Scheme | None] = {}
    for target, entry in entries.values.items():
        if entry == {"scheme": AS_IT_IS}:
            schemes[target] = None
            continue
        scheme = entries.object(target)
        scheme.only(("scheme", "group_size"))
        schemes[target] = _scheme(scheme.text("scheme"), scheme)
    return QuantizationConfig("mixq", schemes, tuple(table))


def _texts(fields: Fields, name: str) -> list[str]:
    value = fields.values.get(name) or []
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise fields.wrong(name, "a list of strings")
    return value


def _parse_compressed_tensors(fields: Fields) -> QuantizationConfig:
    fields.one_of("format", (PACK_QUANTIZED,))
    _only(fields, "quantization_status", "compressed")
    for name in ("kv_cache_scheme", "transform_config"):
        if fields.values.get(name):
            raise fields.wrong(name, "null")
    _only(fields.object("sparsity_config", default={}), "format", "dense")
    groups = fields.object("config_groups")
    if not groups.values:
        raise fields.wrong("config_groups", "an object of at least one group")
    schemes: dict[str, Scheme] = {}
    for name in groups.values:
        group = groups.object(name)
        scheme = _parse_group(group)
        for target in _texts(group, "targets"):
            if schemes.setdefault(target, scheme) != scheme:
                raise group.wrong("targets", f"disjoint from the other groups': {printable(target, 80)!r} is in two")
    return QuantizationConfig("compressed-tensors", schemes, ignore=tuple(_texts(fields, "ignore")))


def _parse_group(group: Fields) -> Scheme:
    """Return the scheme of one of compressed-tensors' config groups."""
    group.one_of("format", (PACK_QUANTIZED,), default=PACK_QUANTIZED)
    for name in ("input_activations", "output_activations"):
        if group.values.get(name):
            raise group.wrong(name, "null: only weights may be quantized")
    weights = group.object("weights")
    for name, value in (("type", "int"), ("strategy", "group"), ("symmetric", True), ("dynamic", False)):
        _only(weights, name, value)
    weights.one_of("actorder", ("weight", "static"), default="weight")
    bits = weights.one_of("num_bits", (4, 8)) if "num_bits" in weights.values else 8
    return _scheme(f"w{bits}", weights)


def _only(fields: Fields, name: str, value: object) -> None:
    """Refuse other values than this one; a missing field has it; null is refused too."""
    if name in fields.values:
        fields.one_of(name, (value,))


def _parse_bitsandbytes(fields: Fields) -> QuantizationConfig:
    if not fields.boolean("load_in_4bit", default=False):
        raise fields.wrong("load_in_4bit", "true: 8-bit bitsandbytes folders are not supported")
    fields.one_of("bnb_4bit_quant_type", ("nf4",))
    return QuantizationConfig("bitsandbytes", {"Linear": Scheme("nf4", 64)})
