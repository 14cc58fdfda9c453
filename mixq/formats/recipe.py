r"""A recipe: schemes of single linear layers, by patterns of their whole names; it takes precedence over the mix.

Contract: `resolve_recipe` finds, from the model's config, the scheme of each layer; the first pattern that matches a
layer applies, as in config.json. A pattern is refused if it matches no layer, or one that is never quantized, so that
mistakes in a recipe are noticed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from mixq.config import ModelConfig
from mixq.errors import ModelFileError, UsageError, did_you_mean, printable
from mixq.formats.architecture import Parameter, parameters
from mixq.formats.patterns import compile_pattern
from mixq.formats.scheme import GROUP_SIZES, Scheme


@dataclass(frozen=True, slots=True)
class Recipe:
    """A recipe, applied to a model."""

    # {regex over whole layer names: scheme that fits}, in the order of matching
    patterns: Mapping[str, Scheme | None] = field(default_factory=dict)
    # scheme by the name of each linear layer that a pattern matches; None stays as it is
    linears: Mapping[str, Scheme | None] = field(default_factory=dict)
    notes: tuple[str, ...] = ()  # what does not fit and what is done instead, one sentence each


def resolve_recipe(config: ModelConfig, recipe: Mapping[str, Scheme | None], limit: int) -> Recipe:
    """Find the linear layers of each pattern.

    Args:
        limit: most patterns that config.json can have.

    Raises:
        UsageError: too many patterns, one that is too complex, matches no linear layer, or would quantize the router, a
            norm or the embedding.
    """
    if len(recipe) > limit:
        raise UsageError(
            f"the recipe has {len(recipe)} patterns; with this mix at most {limit} are possible.",
            hint="Join patterns with the same scheme: (0|1|31) or [0-7] for several layers, w[13] for several "
            "matrices.",
        )
    everything = list(parameters(config))
    patterns: dict[str, Scheme | None] = {}
    linears: dict[str, Scheme | None] = {}
    notes: list[str] = []
    for pattern, wanted in recipe.items():
        matched = _matched(pattern, wanted, everything)
        new = [parameter for parameter in matched if parameter.module not in linears]
        if not new:
            notes.append(
                f"recipe: {_shown(pattern)} has no effect, because earlier patterns match everything that it matches."
            )
            continue
        scheme, note = fit_scheme(wanted, {parameter.shape[1] for parameter in new}, f"recipe: {_shown(pattern)}")
        patterns[pattern] = scheme
        linears |= dict.fromkeys((parameter.module for parameter in new), scheme)
        notes += [note] if note else []
    return Recipe(patterns, linears, tuple(notes))


def fit_scheme(scheme: Scheme | None, sizes: set[int], what: str) -> tuple[Scheme | None, str | None]:
    """Return the scheme with the largest group, at most its own, that divides every K; and a note if it changed."""
    if scheme is None:
        return None, None
    inputs = f"{what}: {' and '.join(map(str, sorted(sizes)))} inputs"
    for group in sorted(GROUP_SIZES[scheme.name], reverse=True):
        if group <= scheme.group_size and all(K % group == 0 for K in sizes):
            if group == scheme.group_size:
                return scheme, None
            fitted = Scheme(scheme.name, group)
            return fitted, f"{inputs} do not divide into groups of {scheme.group_size}; {fitted} is used."
    return None, f"{inputs} do not divide into any group of {scheme.name}; it stays bf16."


def note_of_unlike_experts(config: ModelConfig, scheme_of: Callable[[Parameter], Scheme | None]) -> str | None:
    """Return a note if experts of one layer have different schemes, else None."""
    schemes: dict[int, dict[int, list[Scheme | None]]] = {}
    for parameter in parameters(config):
        if parameter.layer is not None and parameter.expert is not None:
            schemes.setdefault(parameter.layer, {}).setdefault(parameter.expert, []).append(scheme_of(parameter))
    unlike = [layer for layer, experts in schemes.items() if len({tuple(s) for s in experts.values()}) > 1]
    if not unlike:
        return None
    return (
        f"recipe: the experts of layer{'s' * (len(unlike) > 1)} {', '.join(map(str, unlike))} have different schemes; "
        "an expert cache on a GPU needs the same scheme for all experts of a layer and will not be used."
    )


def _matched(pattern: str, wanted: Scheme | None, everything: Sequence[Parameter]) -> list[Parameter]:
    """Return the linear layers whose whole name matches a pattern: at least one, and none that is never quantized."""
    try:
        compiled = compile_pattern(pattern, "the recipe")
    except ModelFileError as error:
        raise UsageError(error.message) from None
    found = [parameter for parameter in everything if compiled.fullmatch(parameter.module)]
    linears = [parameter for parameter in found if parameter.quantizable]
    others = [parameter for parameter in found if not parameter.quantizable]
    if others and (wanted is not None or not linears):
        reason = {
            "router": "it is small, and errors in it would select wrong experts",
            "embedding": "it is looked up, not multiplied",
        }.get(others[0].role, "it is not a linear layer")
        raise UsageError(
            f"the recipe's {_shown(pattern)} matches {others[0].module}, which is never quantized: {reason}.",
            hint=r"Write a narrower pattern, such as model\.layers\.0\..*_proj for a layer's attention.",
        )
    if not linears:
        names = [parameter.module for parameter in everything if parameter.quantizable]
        raise UsageError(
            f"the recipe's {_shown(pattern)} matches no linear layer of this model."
            + did_you_mean(pattern.replace("\\", ""), names),
            hint=f"A pattern must match the whole name. Examples of names: {names[0]}, {names[-2]}.",
        )
    return linears


def _shown(pattern: str) -> str:
    return f"'{printable(pattern, 80)}'"
