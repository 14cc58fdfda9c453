"""job.json: the settings and source of a job, and its finished shards.

Contract: written atomically before the first shard and after each; it lists only complete shards. A job is resumed only
with the same settings and source. The file is removed when the folder is finished.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mixq.errors import ModelFileError, UsageError, printable
from mixq.formats.atomic import atomic_write_json
from mixq.formats.json_file import read_json_object
from mixq.formats.manifest import Manifest
from mixq.formats.nl4 import is_table

FILE_NAME = "job.json"
FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class LinearError:
    """The quantization error of one linear layer; see `Quantized` for the two values."""

    scheme: str
    relative_squared_error: float
    group_error: float


@dataclass(frozen=True, slots=True)
class FinishedShard:
    """A complete shard; `few_tokens` has the experts that received few tokens of a calibration text."""

    sha256: str
    errors: Mapping[str, LinearError]
    few_tokens: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def read(cls, raw: Mapping[str, Any]) -> FinishedShard:
        """Return a shard from its entry in job.json; raises KeyError, TypeError, ValueError or AttributeError."""
        errors = {
            linear: LinearError(str(e["scheme"]), float(e["relative_squared_error"]), float(e["group_error"]))
            for linear, e in raw["errors"].items()
        }
        few_tokens = {str(expert): int(tokens) for expert, tokens in raw.get("few_tokens", {}).items()}
        return cls(str(raw["sha256"]), errors, few_tokens)


@dataclass(slots=True)
class Journal:
    """The content of job.json."""

    settings: Mapping[str, Any]
    source: Mapping[str, Any]
    shards: dict[str, FinishedShard] = field(default_factory=dict)
    table: tuple[int, ...] | None = None  # the fitted code values of nl4; None without
    # {file: sha256} of a calibration's hidden states after the last finished shard
    state: dict[str, str] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write job.json into the folder, atomically."""
        atomic_write_json(folder / FILE_NAME, {"format_version": FORMAT_VERSION, **asdict(self)})

    @classmethod
    def read(cls, folder: Path) -> Journal | None:
        """Return the journal of a folder; None if there is none; ModelFileError if it is damaged."""
        if not (folder / FILE_NAME).exists():
            return None
        raw = read_json_object(folder / FILE_NAME)
        if raw.get("format_version") != FORMAT_VERSION:
            raise _damaged(folder)
        try:
            shards = {name: FinishedShard.read(shard) for name, shard in raw["shards"].items()}
            table = raw.get("table")
            if table is not None and not is_table(table):
                raise ValueError
            state = {str(file): str(sha256) for file, sha256 in raw.get("state", {}).items()}
            return cls(dict(raw["settings"]), dict(raw["source"]), shards, table and tuple(table), state)
        except (KeyError, TypeError, ValueError, AttributeError):
            raise _damaged(folder) from None


def refuse_other_job(
    begun: Journal | Manifest, settings: Mapping[str, Any], source: Mapping[str, Any], folder: Path
) -> None:
    """Refuse to resume a job with other settings or another source.

    Raises:
        UsageError: the first setting that differs with both values, or the name of the other source.
    """
    if begun.source.get("fingerprint") != source.get("fingerprint"):
        raise UsageError(
            f"{printable(folder)} was started with another checkpoint, {printable(begun.source.get('name'))!r}; "
            f"this is {printable(source.get('name'))!r}.",
            hint=_OTHER_JOB,
        )
    _refuse_difference(begun.settings, settings, "setting", folder)


_OTHER_JOB = "Choose another folder, or delete this one."


def _refuse_difference(old: Mapping[str, Any], new: Mapping[str, Any], what: str, folder: Path) -> None:
    for key in (*new, *(key for key in old if key not in new)):
        before, now = old.get(key), new.get(key)
        if before == now:
            continue
        if isinstance(before, dict) and isinstance(now, dict):
            _refuse_difference(before, now, f"{what} {key}:", folder)
        raise UsageError(
            f"{printable(folder)} was started with the {what} {printable(key)} = {printable(before)}; it is now "
            f"{printable(now)}.",
            hint=f"Use the same settings to resume it. {_OTHER_JOB}",
        )


def _damaged(folder: Path) -> ModelFileError:
    return ModelFileError(
        f"{printable(folder / FILE_NAME)} is damaged, or of another version of mixq.",
        hint="Delete the folder and quantize again.",
    )
