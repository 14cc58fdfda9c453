"""The four schemes, by name and group size.

Contract: a `Scheme` is a name and one of its group sizes; the layouts are in `nl4`, `int_groups` and `nf4`. This module
does not import torch, so that planners and commands load fast.
"""

from __future__ import annotations

from dataclasses import dataclass

from mixq.errors import UsageError, did_you_mean, printable

GROUP_SIZES: dict[str, tuple[int, ...]] = {
    "nl4": (16, 32, 64),
    "w4": (32, 64, 128),
    "w8": (32, 64, 128),
    "nf4": (32, 64, 128, 256, 512, 1024, 2048, 4096),
}
"""Group sizes that each scheme has; bitsandbytes calls them block sizes."""

DEFAULT_GROUP_SIZE: dict[str, int] = {"nl4": 32, "w4": 32, "w8": 128, "nf4": 64}


@dataclass(frozen=True, slots=True)
class Scheme:
    """One way to pack a linear layer's weights, such as nl4 with groups of 32 weights along K.

    Raises:
        UsageError: an unknown scheme, or a group size that it does not have; the message lists the known ones.
    """

    name: str
    group_size: int

    def __post_init__(self) -> None:
        allowed = GROUP_SIZES.get(self.name)
        if allowed is None:
            raise UsageError(
                f"unknown scheme {printable(self.name)!r}; choose from {', '.join(GROUP_SIZES)}."
                + did_you_mean(self.name, GROUP_SIZES)
            )
        if self.group_size not in allowed:
            raise UsageError(
                f"group size {printable(self.group_size)} does not exist for {self.name}; "
                f"choose from {', '.join(map(str, allowed))}."
            )

    @classmethod
    def parse(cls, text: str) -> Scheme:
        """Return the scheme for 'nl4' (with its default group size) or 'nl4:16'."""
        name, colon, group = text.strip().partition(":")
        if not colon:
            return cls(name, DEFAULT_GROUP_SIZE.get(name, 0))
        if not (group.isascii() and group.isdigit() and len(group) <= 6):
            raise UsageError(
                f"{printable(text)!r} is not a scheme.", hint="Write NAME or NAME:GROUP, for example nl4:32."
            )
        return cls(name, int(group))

    @property
    def bits(self) -> int:
        """Bits of a code, without scales."""
        return 8 if self.name == "w8" else 4

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether a weight [N, K] can be packed: K must be a multiple of the group size."""
        return len(shape) == 2 and min(shape) > 0 and shape[1] % self.group_size == 0

    def __str__(self) -> str:
        return f"{self.name}:{self.group_size}"
