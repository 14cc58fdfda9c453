"""The scheme of each layer: a format's default mix, changed by `--group`, `--mix` and `--recipe`.

Contract: `Mix.resolve` decides, from the model's config alone, the scheme of every linear layer (None: it stays in
bfloat16), the `quantization_config` for config.json, and a note wherever the requested scheme does not fit a shape.
mixq/README.md explains the default mixes; the limits of compressed-tensors folders (w4, w8) are those of vLLM, SGLang
and transformers. Weights are not read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from mixq.config import ModelConfig
from mixq.errors import UsageError, did_you_mean, printable
from mixq.formats.architecture import Parameter, parameters
from mixq.formats.nl4 import DEFAULT_TABLE
from mixq.formats.quantization import AS_IT_IS as AS_IT_IS
from mixq.formats.quantization import (
    ATTENTION_TARGET,
    EXPERTS_TARGET,
    MAX_PATTERNS,
    MLP_TARGET,
    QuantizationConfig,
)
from mixq.formats.recipe import Recipe, fit_scheme, note_of_unlike_experts, resolve_recipe
from mixq.formats.scheme import DEFAULT_GROUP_SIZE, Scheme

FORMATS = ("nl4", "w4", "w8", "nf4")
COMPRESSED_TENSORS = ("w4", "w8")
"""Formats that other engines open; the others are only for mixq."""

ATTENTION = ("q", "k", "v", "o")
NAMES = ("experts", "attention", *ATTENTION, "lm_head", "embedding")
"""The names in `--mix`. In a dense model, `experts` is the feed-forward block."""

ALL_NL4 = "all-nl4"


@dataclass(frozen=True, slots=True)
class Mix:
    """A resolved mix."""

    format: str  # the requested format
    # scheme by part (`experts`, `q`, `k`, `v`, `o`, `lm_head`) before shapes were considered
    requested: Mapping[str, Scheme | None]
    schemes: Mapping[str, Scheme | None]  # scheme by kind of linear layer (see `kind_of`); None stays in bfloat16
    quantization: QuantizationConfig | None  # for config.json; None if nothing is quantized
    notes: tuple[str, ...]  # what does not fit and what is done instead, one sentence each
    # schemes of single linear layers; they take precedence over `schemes`
    recipe: Recipe = field(default_factory=Recipe)

    @classmethod
    def resolve(
        cls,
        config: ModelConfig,
        *,
        format: str = "nl4",
        group: int | None = None,
        mix: str | None = None,
        table: Sequence[int] = DEFAULT_TABLE,
        kept: Mapping[str, Scheme] | None = None,
        recipe: Mapping[str, Scheme | None] | None = None,
    ) -> Mix:
        """Decide the scheme of every linear layer.

        Args:
            format: one of `FORMATS`.
            group: group size of every linear layer packed with the format's own scheme, unless `mix` names one.
            mix: `all-nl4`, or NAME=SCHEME pairs such as `experts=nl4:64,o=w8,lm_head=bf16`; later ones override earlier
                ones.
            table: the code values of nl4.
            kept: scheme by kind of linear layer that is copied from the source; only the recipe takes precedence.
            recipe: {regex over whole layer names: scheme, or None for unquantized}; the first match applies.

        Raises:
            UsageError: an unknown format, name, scheme or group, a mix that the format's folder cannot hold, or a
                recipe that does not fit the model.
        """
        if format not in FORMATS:
            raise UsageError(
                f"unknown format {printable(format)!r}; choose from {', '.join(FORMATS)}."
                + did_you_mean(format, FORMATS)
            )
        requested = _default(format, group)
        if mix is not None:
            requested = _apply(requested, mix, format, group)
        if config.tie_word_embeddings:
            if requested["lm_head"] is not None and "lm_head" in (mix or ""):
                raise UsageError("lm_head shares the embedding's weights in this model, so it stays in bf16.")
            requested["lm_head"] = None
        if format in COMPRESSED_TENSORS:
            _check_compressed_tensors(requested, format)
            if recipe:
                raise UsageError(
                    f"--recipe cannot be combined with --format {format}: the engines that open such a folder load "
                    "one scheme for all experts, and one for q, k and v.",
                    hint="Use --format nl4, and set the schemes in the recipe.",
                )

        schemes: dict[str, Scheme | None] = {}
        notes: list[str] = []
        for kinds, part, sizes in _units(config, joined=format in COMPRESSED_TENSORS):
            scheme, note = fit_scheme(requested[part], sizes, " and ".join(kinds))
            if kept and any(kind in kept for kind in kinds):
                of_source = {kept.get(kind) for kind in kinds}
                if len(of_source) == 1 and (part != "lm_head" or format not in COMPRESSED_TENSORS):
                    scheme, note = of_source.pop(), None
                else:
                    lost = [kind for kind in kinds if kept.get(kind) not in (None, scheme)]
                    if lost:
                        one = "stays unquantized" if len(kinds) == 1 else f"has one scheme for {' and '.join(kinds)}"
                        what = f"a {format} folder {one}" if len(kinds) > 1 else f"in a {format} folder it {one}"
                        note = f"{' and '.join(lost)}: cannot be kept as in the source; {what}."
            schemes |= dict.fromkeys(kinds, scheme)
            notes += [note] if note else []
        if format in COMPRESSED_TENSORS:
            resolved = Recipe()
            quantization = QuantizationConfig.compressed_tensors(_targets(schemes))
        else:
            patterns = _patterns(schemes)
            resolved = resolve_recipe(config, recipe or {}, MAX_PATTERNS - len(patterns))
            # The recipe's patterns come first; if both have a pattern, the recipe's scheme applies.
            quantization = QuantizationConfig.mixq({**resolved.patterns, **patterns, **resolved.patterns}, table)
        found = cls(format, requested, schemes, quantization, (*notes, *resolved.notes), resolved)
        if not any(found.scheme_of(parameter) for parameter in parameters(config)):
            raise UsageError(
                f"--format {format} cannot quantize any layer of this model." + " ".join(["", *found.notes])
            )
        unlike = note_of_unlike_experts(config, found.scheme_of) if resolved.linears else None
        return replace(found, notes=(*found.notes, unlike)) if unlike else found

    @classmethod
    def unquantized(cls) -> Mix:
        """Return the mix of a folder in which nothing is quantized."""
        return cls(AS_IT_IS, {}, {}, None, ())

    def scheme_of(self, parameter: Parameter) -> Scheme | None:
        """Return the scheme of one tensor; None if it stays in bfloat16."""
        if parameter.module in self.recipe.linears:
            return self.recipe.linears[parameter.module]
        return self.schemes.get(kind_of(parameter)) if parameter.quantizable else None

    def as_dict(self) -> dict[str, str]:
        """Return {kind of linear layer: scheme}, and the recipe's patterns in order, for job.json and reports."""
        found = {kind: str(scheme or AS_IT_IS) for kind, scheme in self.schemes.items()}
        if self.recipe.patterns:  # as one text: comparing objects would ignore the order of their keys
            found["recipe"] = "; ".join(f"{p} = {scheme or AS_IT_IS}" for p, scheme in self.recipe.patterns.items())
        return found


def kind_of(parameter: Parameter) -> str:
    """Return which linear layer this is within its layer: `w1`, `gate_proj`, `q`, `lm_head` and so on."""
    return parameter.module.rsplit(".", 1)[-1] if parameter.role in ("expert", "mlp") else parameter.role


def _default(format: str, group: int | None) -> dict[str, Scheme | None]:
    own = Scheme(format, DEFAULT_GROUP_SIZE[format] if group is None else group)
    eight = Scheme("w8", DEFAULT_GROUP_SIZE["w8"])
    if format == "nl4":
        fine = Scheme("nl4", 16 if group is None else group)
        return {"experts": own, "q": fine, "k": eight, "v": eight, "o": fine, "lm_head": eight}
    attention = eight if format == "w4" else own
    return {"experts": own, **dict.fromkeys(ATTENTION, attention), "lm_head": None}


def _apply(requested: dict[str, Scheme | None], mix: str, format: str, group: int | None) -> dict[str, Scheme | None]:
    """Return the schemes as `--mix` changes them."""
    changed = dict(requested)
    for item in (item.strip() for item in mix.split(",")):
        if item == ALL_NL4:
            if format != "nl4":
                raise UsageError(f"--mix {ALL_NL4} needs --format nl4, not {format}.")
            changed = dict.fromkeys(changed, Scheme("nl4", DEFAULT_GROUP_SIZE["nl4"] if group is None else group))
            continue
        name, equals, text = (piece.strip() for piece in item.partition("="))
        if not equals:
            raise UsageError(
                f"{printable(item)!r} in --mix is not NAME=FORMAT or NAME=FORMAT:GROUP."
                + did_you_mean(item, [ALL_NL4]),
                hint=f"Write {ALL_NL4}, or pairs such as experts=nl4:32,o=w8,lm_head=bf16.",
            )
        if name in ("router", "gate", "norm"):
            raise UsageError(f"{name} is never quantized: it is small, and errors in it would select wrong experts.")
        if name not in NAMES:
            raise UsageError(
                f"unknown name {printable(name)!r} in --mix; choose from {', '.join(NAMES)}."
                + did_you_mean(name, NAMES)
            )
        scheme = None if text == AS_IT_IS else Scheme.parse(text)
        if scheme is not None and group is not None and text == format:
            scheme = Scheme(format, group)
        if name == "embedding":
            if scheme is not None:
                raise UsageError("the embedding is looked up, not multiplied; it stays in bf16.")
            continue
        changed |= dict.fromkeys(ATTENTION if name == "attention" else (name,), scheme)
    return changed


def _check_compressed_tensors(requested: Mapping[str, Scheme | None], format: str) -> None:
    """Refuse what other engines cannot load, or load wrongly without an error."""
    for part, scheme in requested.items():
        if scheme is not None and scheme.name not in COMPRESSED_TENSORS:
            raise UsageError(
                f"{part}={scheme} cannot be combined with --format {format}: a compressed-tensors folder has only "
                "w4 and w8.",
                hint="Use --format nl4 and set the schemes in --mix.",
            )
    if requested["lm_head"] is not None:
        raise UsageError(
            f"lm_head must stay bf16 in a {format} folder: SGLang would load a packed one wrongly, without an error.",
            hint="Use --format nl4 to quantize it.",
        )
    if len({requested[part] for part in ("q", "k", "v")}) > 1:
        raise UsageError(
            f"q, k and v must have the same scheme in a {format} folder: vLLM merges them into one matrix."
        )


def _units(config: ModelConfig, *, joined: bool) -> list[tuple[tuple[str, ...], str, set[int]]]:
    """Return (kinds, part, numbers of inputs K) of the layers that must have the same scheme.

    In a compressed-tensors folder these are all matrices of a part (`joined`), else those of one kind.
    """
    linears = {kind_of(parameter): parameter for parameter in parameters(config) if parameter.quantizable}
    inputs = {kind: linear.shape[1] for kind, linear in linears.items()}
    parts = {kind: "experts" if linear.role in ("expert", "mlp") else linear.role for kind, linear in linears.items()}
    if not joined:
        return [((kind,), parts[kind], {K}) for kind, K in inputs.items()]
    feed_forward = tuple(kind for kind, part in parts.items() if part == "experts")
    groups = [("q", "k", "v"), ("o",), feed_forward] + ([("lm_head",)] if "lm_head" in inputs else [])
    return [(kinds, parts[kinds[0]], {inputs[kind] for kind in kinds}) for kinds in groups]


def _by_scheme(schemes: Mapping[str, Scheme | None], kinds: Sequence[str]) -> dict[Scheme, list[str]]:
    """Return {scheme: those of `kinds` that have it}."""
    found: dict[Scheme, list[str]] = {}
    for kind in kinds:
        scheme = schemes.get(kind)
        if scheme is not None:
            found.setdefault(scheme, []).append(kind)
    return found


def _patterns(schemes: Mapping[str, Scheme | None]) -> dict[str, Scheme]:
    """Return mixq's {regex over whole layer names: scheme}."""
    patterns: dict[str, Scheme] = {}
    for kinds, before, after in (
        (("w1", "w2", "w3"), r".*\.block_sparse_moe\.experts\..*\.", ""),
        (("gate_proj", "up_proj", "down_proj"), r".*\.mlp\.", ""),
        (ATTENTION, r".*\.self_attn\.", "_proj"),
    ):
        for scheme, found in _by_scheme(schemes, kinds).items():
            names = "w[123]" if found == ["w1", "w2", "w3"] else f"({'|'.join(found)})"
            patterns[f"{before}{names}{after}"] = scheme
    head = schemes.get("lm_head")
    return patterns if head is None else {**patterns, "lm_head": head}


def _targets(schemes: Mapping[str, Scheme | None]) -> dict[str, Scheme]:
    """Return compressed-tensors' {target: scheme}."""
    targets: dict[str, Scheme] = {}
    for scheme, kinds in _by_scheme(schemes, ATTENTION).items():
        targets[ATTENTION_TARGET if len(kinds) == 4 else rf"re:.*self_attn\.({'|'.join(kinds)})_proj$"] = scheme
    for kind, target in (("w1", EXPERTS_TARGET), ("gate_proj", MLP_TARGET)):
        feed_forward = schemes.get(kind)
        if feed_forward is not None:
            targets[target] = feed_forward
    return targets
