r"""Regular expressions from untrusted files.

Contract: `compile_pattern` accepts only patterns that match a layer's name in a bounded number of steps, so that
`(a+)+$` in a config.json cannot hang the program. Look-ahead and alternatives are allowed, since published folders use
them; repeated groups, counts and back references are not.
"""

from __future__ import annotations

import re

from mixq.errors import ModelFileError, printable

MAX_LENGTH = 200
MAX_COST = 2**18
"""Most steps to match a name of 64 characters: three `.*` and nothing else, or two and six choices."""


def cost(pattern: str) -> int | None:
    """Return a bound on the steps of matching a name; None if there is none.

    Each * or + multiplies by the name's length, each ? or | by two.
    """
    if re.search(r"\\[1-9]", pattern.replace("\\\\", "")):  # a back reference
        return None
    plain = re.sub(r"\\.", "x", pattern, flags=re.DOTALL)
    plain = re.sub(r"\(\?[:!=]", "(", plain)
    if re.search(r"\)[*+?]|\{|\(\?", plain):
        return None
    return int(64 ** len(re.findall(r"[*+]", plain)) * 2 ** len(re.findall(r"[?|]", plain)))


def compile_pattern(pattern: str, where: str) -> re.Pattern[str]:
    """Compile a pattern; `where` names its place in messages.

    Raises:
        ModelFileError: not a pattern, or matching could take long.
    """
    shown = printable(repr(pattern), 80)
    if not 0 < len(pattern) <= MAX_LENGTH:
        raise ModelFileError(f"{where}: {shown} is not a pattern of 1 to {MAX_LENGTH} characters.")
    steps = cost(pattern)
    if steps is None or steps > MAX_COST:
        raise ModelFileError(
            f"{where}: {shown} is too complex: repeated groups, counts, back references "
            "and more than three * or + are not allowed."
        )
    try:
        return re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise ModelFileError(f"{where}: {shown} is not a pattern ({printable(error)}).") from None
