"""config.json's `quantization_config`: which Linear is packed in which scheme.

Contract: three methods are read. "mixq" is this project's (DESIGN.md section 2): regexes over whole Linear names, first
match wins. "compressed-tensors" is read where it is pack-quantized, symmetric int4 or int8 groups, by that library's
own matching rules (compressed_tensors/utils/match.py, version 0.20), and written so that transformers, vLLM and SGLang
load it. "bitsandbytes" is read only, for nf4. Patterns come from files; see `patterns` for those accepted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mixq.errors import ModelFileError, UsageError, printable
from mixq.formats.nl4 import DEFAULT_TABLE, is_table
from mixq.formats.patterns import compile_pattern
from mixq.formats.scheme import Scheme

VERSION = 1
EXPERTS_TARGET = r"re:.*block_sparse_moe\.experts\..*"
"""Must not end in w1|w2|w3: SGLang looks an expert's scheme up under gate_proj, up_proj and down_proj."""
ATTENTION_TARGET = r"re:.*self_attn\..*_proj$"
MLP_TARGET = r"re:.*\.mlp\..*_proj$"
DEFAULT_IGNORE = ("lm_head", r"re:.*block_sparse_moe\.gate$")

AS_IT_IS = "bf16"
"""In place of a scheme: what the pattern matches is not quantized."""

MAX_TARGETS = 4096
MAX_PATTERNS = 32


@dataclass(frozen=True, slots=True)
class QuantizationConfig:
    """Which scheme each Linear has.

    Attributes:
        method: "mixq", "compressed-tensors" or "bitsandbytes".
        schemes: by target; None (mixq only) leaves as it is. For mixq a target is a regex over the whole name. For
            compressed-tensors it is a module name, "re:" and a regex over the name's beginning, or the class name
            "Linear".
        table: nl4's 16 values; the default one where the folder has no nl4.
        ignore: targets that stay as they are (compressed-tensors).

    Raises:
        ModelFileError: a pattern that is none, or could take long on a name.
    """

    method: str
    schemes: Mapping[str, Scheme | None]
    table: tuple[int, ...] = DEFAULT_TABLE
    ignore: tuple[str, ...] = ()
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
        """Return this project's own method for {regex over whole Linear names: scheme}; first match wins."""
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

    def with_table(self, table: Sequence[int]) -> QuantizationConfig:
        """Return the same with other code values of nl4."""
        return replace(self, table=tuple(table))

    def scheme_for(self, linear_name: str) -> Scheme | None:
        """Return the scheme of a Linear, or None where it is not quantized."""
        if self.method == "mixq":
            for target, scheme in self.schemes.items():
                if self._patterns[target].fullmatch(linear_name):
                    return scheme
            return None
        if self.method == "bitsandbytes":
            return self.schemes["Linear"]  # ModelFolder asks the tensors which Linears really are
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
        """Check and return config.json's quantization_config; None where there is none.

        Raises:
            ModelFileError: a method, format or option that mixq does not read, named by its field.
        """
        if raw is None:
            return None
        if not isinstance(raw, Mapping):
            raise ModelFileError("config.json: quantization_config is not an object.")
        method = raw.get("quant_method")
        if method == "mixq":
            return _parse_mixq(raw)
        if method == "compressed-tensors":
            return _parse_compressed_tensors(raw)
        if method == "bitsandbytes":
            return _parse_bitsandbytes(raw)
        raise ModelFileError(
            f"config.json: quant_method is {printable(repr(method))}, which mixq does not read.",
            hint="It reads mixq, compressed-tensors (pack-quantized), bitsandbytes (nf4) and unquantized folders.",
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
            "format": "pack-quantized",
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
                    "format": "pack-quantized",
                }
                for i, (scheme, targets) in enumerate(groups.items())
            },
            "ignore": list(self.ignore),
            "kv_cache_scheme": None,
            "global_compression_ratio": None,
        }


def _bad(field_name: str, value: object, allowed: str) -> ModelFileError:
    return ModelFileError(
        f"config.json: quantization_config's {field_name} is {printable(repr(value))}; mixq reads {allowed}."
    )


def _scheme(name: str, group_size: object, field_name: str) -> Scheme:
    if not isinstance(group_size, int) or isinstance(group_size, bool):
        raise _bad(f"{field_name}.group_size", group_size, "a whole number")
    try:
        return Scheme(name, group_size)
    except UsageError as error:
        raise ModelFileError(f"config.json: quantization_config's {field_name}: {error.message}") from None


def _parse_mixq(raw: Mapping[str, Any]) -> QuantizationConfig:
    if raw.get("version") != VERSION or isinstance(raw.get("version"), bool):
        raise _bad("version", raw.get("version"), f"version {VERSION}; this folder was made for another mixq")
    for key in raw:
        if key not in ("quant_method", "version", "table", "schemes"):
            raise ModelFileError(f"config.json: quantization_config has the unknown key {printable(key)!r}.")
    table = raw.get("table", list(DEFAULT_TABLE))
    if not is_table(table):
        raise _bad("table", table, "16 ascending whole numbers from -128 to 127")
    listed = raw.get("schemes")
    if not isinstance(listed, Mapping):
        raise _bad("schemes", listed, "an object of patterns")
    schemes: dict[str, Scheme | None] = {}
    for target, entry in listed.items():
        if entry == {"scheme": AS_IT_IS}:
            schemes[target] = None
            continue
        if not isinstance(entry, Mapping) or entry.keys() != {"scheme", "group_size"}:
            raise _bad(f"schemes[{printable(repr(target), 80)}]", entry, "an object of scheme and group_size")
        schemes[target] = _scheme(str(entry["scheme"]), entry["group_size"], f"schemes[{printable(target, 80)!r}]")
    return QuantizationConfig("mixq", schemes, tuple(table))


def _texts(raw: Mapping[str, Any], key: str, field_name: str) -> list[str]:
    value = raw.get(key) or []
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise _bad(field_name, value, "a list of text")
    return value


def _parse_compressed_tensors(raw: Mapping[str, Any]) -> QuantizationConfig:
    if raw.get("format") != "pack-quantized":
        raise _bad("format", raw.get("format"), "'pack-quantized'")
    if raw.get("quantization_status", "compressed") != "compressed":
        raise _bad("quantization_status", raw.get("quantization_status"), "'compressed'")
    for key in ("kv_cache_scheme", "transform_config"):
        if raw.get(key):
            raise _bad(key, raw[key], "null")
    sparsity = raw.get("sparsity_config") or {}
    if not isinstance(sparsity, Mapping) or sparsity.get("format", "dense") != "dense":
        raise _bad("sparsity_config", sparsity, "no sparsity")
    groups = raw.get("config_groups")
    if not isinstance(groups, Mapping) or not groups:
        raise _bad("config_groups", groups, "one group or more")
    schemes: dict[str, Scheme] = {}
    for group_name, group in groups.items():
        shown = f"config_groups.{printable(group_name, 40)}"
        if not isinstance(group, Mapping):
            raise _bad(shown, group, "an object")
        scheme = _parse_weights(group, shown)
        for target in _texts(group, "targets", f"{shown}.targets"):
            if schemes.setdefault(target, scheme) != scheme:
                raise _bad(f"{shown}.targets", target, "a target in one group only")
    return QuantizationConfig("compressed-tensors", schemes, ignore=tuple(_texts(raw, "ignore", "ignore")))


def _parse_weights(group: Mapping[str, Any], shown: str) -> Scheme:
    """Return the scheme of one of compressed-tensors' config groups."""
    if (group.get("format") or "pack-quantized") != "pack-quantized":
        raise _bad(f"{shown}.format", group["format"], "'pack-quantized'")
    for key in ("input_activations", "output_activations"):
        if group.get(key):
            raise _bad(f"{shown}.{key}", group[key], "null: weights are quantized, activations are not stored so")
    weights = group.get("weights")
    if not isinstance(weights, Mapping):
        raise _bad(f"{shown}.weights", weights, "an object")
    for key, default, allowed in (
        ("type", "int", ("int",)),
        ("num_bits", 8, (4, 8)),
        ("symmetric", True, (True,)),
        ("strategy", "group", ("group",)),
        ("dynamic", False, (False,)),
        ("actorder", None, (None, "weight", "static")),
    ):
        value = weights.get(key, default)
        if value not in allowed or isinstance(value, float):
            raise _bad(f"{shown}.weights.{key}", value, " or ".join(map(repr, allowed)))
    bits = weights.get("num_bits", 8)
    return _scheme(f"w{int(bits)}", weights.get("group_size"), f"{shown}.weights")


def _parse_bitsandbytes(raw: Mapping[str, Any]) -> QuantizationConfig:
    if raw.get("load_in_4bit") is not True:
        raise _bad("load_in_4bit", raw.get("load_in_4bit"), "true: 8-bit bitsandbytes folders are not supported")
    if raw.get("bnb_4bit_quant_type") != "nf4":
        raise _bad("bnb_4bit_quant_type", raw.get("bnb_4bit_quant_type"), "'nf4'")
    return QuantizationConfig("bitsandbytes", {"Linear": Scheme("nf4", 64)})
