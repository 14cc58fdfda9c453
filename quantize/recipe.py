r"""`--recipe FILE`: schemes of single linear layers, from a TOML file.

    [schemes] 'model\.layers\.(0|31)\.block_sparse_moe\.experts\..*\.w2' = "nl4:16" 'model\.layers\.0\..*_proj' = "w8"
    'lm_head' = "bf16"

Contract: every line is checked; their order is kept, since the first pattern that matches applies.
`mixq.formats.recipe` checks the patterns against a model.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path

from mixq.errors import ModelFileError, UsageError, did_you_mean, printable
from mixq.formats.mix import AS_IT_IS
from mixq.formats.patterns import compile_pattern
from mixq.formats.scheme import Scheme

TABLE = "schemes"
MAX_BYTES = 1 << 20


def read_recipe(path: Path) -> Mapping[str, Scheme | None]:
    """Return {regex over whole layer names: scheme, or None for unquantized}, in the file's order.

    Raises:
        UsageError: no such file, not TOML, another key than `schemes`, or a wrong pattern or scheme.
    """
    shown = printable(path)
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"the recipe {shown} cannot be read: {printable(error.strerror)}.") from None
    if len(content) > MAX_BYTES:
        raise UsageError(f"the recipe {shown} has more than {MAX_BYTES:,} bytes, too many for a recipe.")
    try:
        parsed = tomllib.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # TOMLDecodeError and UnicodeDecodeError are ValueErrors
        raise UsageError(
            f"the recipe {shown} is not TOML ({printable(error)}).",
            hint="Write patterns in single quotes, in which a backslash is an ordinary character.",
        ) from None
    for key in parsed:
        if key != TABLE:
            raise UsageError(
                f"the recipe {shown} has the unknown key {printable(key)!r}; it can have [{TABLE}] only."
                + did_you_mean(key, (TABLE,))
            )
    listed = parsed.get(TABLE)
    if not isinstance(listed, dict) or not listed:
        raise UsageError(
            f"the recipe {shown} has no table [{TABLE}] with a pattern in it.",
            hint=f"Write [{TABLE}] on a separate line, then lines such as 'lm_head' = \"{AS_IT_IS}\".",
        )
    return {pattern: _scheme(f"the recipe {shown}", pattern, text) for pattern, text in listed.items()}


def _scheme(where: str, pattern: str, text: object) -> Scheme | None:
    line = f"{where}: {printable(repr(pattern), 80)}"
    if not isinstance(text, str):
        raise UsageError(
            f"{line} has no scheme in quotes.",
            hint="A pattern with dots in it must be quoted too: 'model.layers.0.self_attn.q_proj' = \"nl4:16\".",
        )
    try:
        compile_pattern(pattern, where)
    except ModelFileError as error:
        raise UsageError(error.message) from None
    try:
        return None if text == AS_IT_IS else Scheme.parse(text)
    except UsageError as error:
        raise UsageError(f"{line}: {error.message}", hint=error.hint) from None
