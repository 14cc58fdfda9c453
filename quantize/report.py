"""Two tables of a quantized model: how many bytes each part takes, and the error of each linear layer.

Contract: plain dataclasses with `as_dict()`. Sizes are exact bytes of tensors, without file headers. Errors are
relative squared errors of weights, not of the model's output.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mixq.config import ModelConfig
from mixq.formats.architecture import Parameter, bytes_read, parameters
from mixq.formats.folder import ModelFolder
from mixq.formats.manifest import Manifest
from mixq.formats.packed import PackedLinear
from mixq.quantize.journal import LinearError
from mixq.quantize.layout import Item

NORMAL_ERROR = {
    "nl4:16": 0.0040,
    "nl4:32": 0.0053,
    "nl4:64": 0.0065,
    "w4:32": 0.0066,
    "w4:64": 0.0081,
    "w4:128": 0.0094,
    "w8:32": 2.8e-5,
    "w8:64": 3.5e-5,
    "w8:128": 4.2e-5,
    "nf4:32": 0.0076,
    "nf4:64": 0.0085,
    "nf4:128": 0.0092,
}
"""The error of each scheme on normally distributed weights (measured; tests/quantize checks most of them)."""

BADLY_SERVED = 1.5
"""A linear layer whose error is more than this times `NORMAL_ERROR` is reported: it has outliers."""

WORST = 10


@dataclass(frozen=True, slots=True)
class SizeRow:
    """One part of the model in one scheme."""

    part: str
    scheme: str
    tensors: int
    weights: int
    nbytes: int

    @property
    def bits_per_weight(self) -> float:
        return self.nbytes * 8 / self.weights


@dataclass(frozen=True, slots=True)
class SizeTable:
    """Bytes by part. `token_bytes` are read for one token: of the experts only those that are used."""

    rows: tuple[SizeRow, ...]
    token_bytes: int
    source_bytes: int | None = None

    @property
    def weights(self) -> int:
        return sum(row.weights for row in self.rows)

    @property
    def nbytes(self) -> int:
        return sum(row.nbytes for row in self.rows)

    def as_dict(self) -> dict[str, Any]:
        """Return it for --json."""
        return {
            "rows": [{**asdict(row), "bits_per_weight": round(row.bits_per_weight, 3)} for row in self.rows],
            "weights": self.weights,
            "nbytes": self.nbytes,
            "token_bytes": self.token_bytes,
            "source_bytes": self.source_bytes,
        }


def sizes_of_items(config: ModelConfig, items: Iterable[Item], source_bytes: int | None = None) -> SizeTable:
    """Return the sizes of a folder before it is written."""
    entries = [(item.parameter, item.scheme_text, item.nbytes) for item in items]
    return _size_table(config, entries, source_bytes)


def sizes_of_folder(folder: ModelFolder) -> SizeTable:
    """Return the sizes of an existing folder, quantized or not."""
    entries = []
    for parameter in parameters(folder.config):
        weight = folder.linear(parameter.module) if parameter.quantizable else folder.tensor(parameter.name)
        if isinstance(weight, PackedLinear):
            entries.append((parameter, str(weight.scheme), weight.nbytes))
        else:
            entries.append((parameter, str(weight.dtype).removeprefix("torch."), weight.nbytes))
    return _size_table(folder.config, entries, None)


def _size_table(
    config: ModelConfig, entries: Iterable[tuple[Parameter, str, int]], source_bytes: int | None
) -> SizeTable:
    sums: dict[tuple[str, str], list[int]] = {}
    names: dict[tuple[str, str], dict[str, None]] = {}
    token_bytes = 0
    for parameter, scheme, nbytes in entries:
        attention = parameter.role in ("q", "k", "v", "o")
        part = "attention" if attention else {"expert": "experts", "mlp": "feed-forward"}.get(parameter.role)
        key = (part or parameter.role, scheme)
        row = sums.setdefault(key, [0, 0, 0])
        row[0], row[1], row[2] = row[0] + 1, row[1] + parameter.numel, row[2] + nbytes
        if attention:
            names.setdefault(key, {})[parameter.role] = None
        token_bytes += bytes_read(parameter, config, nbytes)
    rows = [
        SizeRow(f"attention {' '.join(names[key])}" if key in names else key[0], key[1], *figures)
        for key, figures in sums.items()
    ]
    rows.sort(key=lambda row: -row.nbytes)
    return SizeTable(tuple(rows), token_bytes, source_bytes)


@dataclass(frozen=True, slots=True)
class ErrorRow:
    """One linear layer. `ratio` compares with normally distributed weights; None if there is no value for the
    scheme."""

    linear: str
    scheme: str
    relative_squared_error: float
    group_error: float
    ratio: float | None

    @classmethod
    def of(cls, linear: str, error: LinearError) -> ErrorRow:
        larger, normal = max(error.relative_squared_error, error.group_error), NORMAL_ERROR.get(error.scheme)
        ratio = None if normal is None else larger / normal
        return cls(linear, error.scheme, error.relative_squared_error, error.group_error, ratio)


@dataclass(frozen=True, slots=True)
class ErrorReport:
    """The quantization errors of a model."""

    mean: Mapping[str, float]  # mean relative squared error of the linear layers of each scheme
    worst: tuple[ErrorRow, ...]  # the ten linear layers with the largest error, by the larger of their two values
    # all 4-bit layers whose error is more than `BADLY_SERVED` times that of normal weights, as a whole or (rows with
    # outliers) on average over their groups. With 8 bits even such errors are negligible.
    badly_served: tuple[ErrorRow, ...]

    @classmethod
    def of(cls, errors: Mapping[str, LinearError]) -> ErrorReport:
        """Sum up the errors of all linear layers."""
        rows = [ErrorRow.of(linear, error) for linear, error in errors.items()]
        by_scheme: dict[str, list[float]] = {}
        for row in rows:
            by_scheme.setdefault(row.scheme, []).append(row.relative_squared_error)
        rows.sort(key=lambda row: (-max(row.relative_squared_error, row.group_error), row.linear))
        return cls(
            {scheme: sum(values) / len(values) for scheme, values in by_scheme.items()},
            tuple(rows[:WORST]),
            tuple(row for row in rows if (row.ratio or 0.0) > BADLY_SERVED and not row.scheme.startswith("w8")),
        )

    def as_dict(self) -> dict[str, Any]:
        """Return it for --json."""
        return asdict(self)


def errors_of_folder(folder: ModelFolder, manifest: Manifest) -> ErrorReport:
    """Return the errors in a folder's mixq.json, with the schemes of its linear layers."""
    errors = {}
    for parameter in parameters(folder.config):
        error = manifest.errors.get(parameter.module)
        weight = None if error is None or not parameter.quantizable else folder.linear(parameter.module)
        if error is not None and isinstance(weight, PackedLinear):
            group_error = manifest.group_errors.get(parameter.module, error)
            errors[parameter.module] = LinearError(str(weight.scheme), error, group_error)
    return ErrorReport.of(errors)
