"""The number of slots per layer: equal, or from recorded hit curves; and the file of quotas.

Contract: arithmetic only. A curve has the hits of a layer with 0, 1, ... E slots (`mixq.plan.hit_curves`). A file's
quotas are scaled to the given total.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mixq.errors import Fields, ModelFileError, UsageError, is_integer, printable
from mixq.formats.atomic import atomic_write_json
from mixq.formats.json_file import read_json_object

FORMAT = "mixq-quota"
VERSION = 1
_KEYS = ("format", "version", "layers", "experts", "quotas", "from", "popular")
_LARGEST_FILE = 4 << 20
_MOST = 1024  # layers, experts: what a config.json may have


def even(total: int, layers: int, experts: int) -> list[int]:
    """Divide `total` slots among the layers, with the remainder to the first ones; at most `experts` per layer."""
    total = min(total, layers * experts)
    share, rest = divmod(total, layers)
    return [share + (layer < rest) for layer in range(layers)]


def fits(curves: Sequence[Sequence[float]], totals: Sequence[int]) -> list[list[int]]:
    """Return, for each total, the slots of each layer with the most hits in total, by dynamic programming.

    Slots that give no hits are distributed too: the memory is available, and the next run differs from the recorded
    one.

    Args:
        curves: by layer, the hits with 0, 1, ... E slots; more slots have no fewer hits.
        totals: numbers of slots to divide.
    """
    most_slots = max(totals, default=0)
    best: list[float] = [0.0] * (most_slots + 1)  # with t slots for the layers so far
    choices: list[list[int]] = []
    for curve in curves:
        most = len(curve) - 1
        chosen = [
            max(range(min(most, t) + 1), key=lambda k, t=t: (best[t - k] + curve[k], k))  # type: ignore[misc]
            for t in range(most_slots + 1)
        ]
        best = [best[t - k] + curve[k] for t, k in enumerate(chosen)]
        choices.append(chosen)
    return [_shares(choices, total) for total in totals]


def _shares(choices: Sequence[Sequence[int]], total: int) -> list[int]:
    quotas, left = [], total
    for chosen in reversed(choices):
        quotas.append(chosen[left])
        left -= quotas[-1]
    return quotas[::-1]


@dataclass(frozen=True, slots=True)
class Quotas:
    """The slots per layer in a file."""

    # layers, experts: of the model that they are for
    layers: int
    experts: int
    quotas: tuple[int, ...]  # slots of each layer
    source: str = ""  # their origin, for information
    # by layer, all experts, the most used first; slots start with them, and the policy `static` keeps them. None orders
    # them by number.
    popular: tuple[tuple[int, ...], ...] | None = None

    def scaled(self, total: int) -> list[int]:
        """Divide `total` slots in proportion, rounded down, with one more for the largest remainders."""
        total = min(total, self.layers * self.experts)
        given = sum(self.quotas)
        wanted = [quota * total / given if given else total / self.layers for quota in self.quotas]
        shares = [min(int(want), self.experts) for want in wanted]
        while (left := total - sum(shares)) > 0:  # again if layers are full
            open_layers = [layer for layer in range(self.layers) if shares[layer] < self.experts]
            open_layers.sort(key=lambda layer: shares[layer] - wanted[layer])
            for layer in open_layers[:left]:
                shares[layer] += 1
        return shares

    def check_model(self, layers: int, experts: int, name: str) -> None:
        """Raise UsageError if they are for a model with another shape; `name` is the file's, for the message."""
        if (self.layers, self.experts) != (layers, experts):
            raise UsageError(
                f"The quotas of {printable(name)} are for a model of {self.layers} layers with {self.experts} experts "
                f"each; this one has {layers} with {experts}.",
                hint="Create them from a recording of this model: mixq trace, then mixq replay --save-quota FILE.",
            )

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all.

        Raises:
            StorageError: it cannot be written.
        """
        popular = {} if self.popular is None else {"popular": [list(order) for order in self.popular]}
        content = {"layers": self.layers, "experts": self.experts, "quotas": list(self.quotas), "from": self.source}
        atomic_write_json(path, {"format": FORMAT, "version": VERSION, **content, **popular})

    @classmethod
    def read(cls, path: Path) -> Quotas:
        """Read a file.

        Raises:
            ModelFileError: it is not a file of quotas, or a value in it is not allowed.
            StorageError: it cannot be read.
        """
        name = printable(path)
        fields = Fields(read_json_object(path, _LARGEST_FILE), f"{name}: ")
        fields.one_of("format", [FORMAT])
        fields.one_of("version", [VERSION])
        fields.only(_KEYS)
        layers, experts = fields.integer("layers", 1, _MOST), fields.integer("experts", 1, _MOST)
        quotas, popular = fields.values.get("quotas"), fields.values.get("popular")
        if not (isinstance(quotas, list) and len(quotas) == layers and all(is_integer(q, 0, experts) for q in quotas)):
            raise ModelFileError(f"{name}: quotas must be {layers} whole numbers from 0 to {experts}.")
        if popular is not None and not (
            isinstance(popular, list) and len(popular) == layers and all(_is_order(order, experts) for order in popular)
        ):
            raise ModelFileError(f"{name}: popular must be {layers} lists of all experts from 0 to {experts - 1}.")
        orders = None if popular is None else tuple(tuple(order) for order in popular)
        return cls(layers, experts, tuple(quotas), fields.text("from", default=""), orders)


def _is_order(order: object, experts: int) -> bool:
    return isinstance(order, list) and all(map(is_integer, order)) and sorted(order) == list(range(experts))
