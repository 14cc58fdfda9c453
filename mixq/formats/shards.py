"""The safetensors files of a folder, as one set of tensors.

Contract: `ShardSet.open` finds the files (one `model.safetensors`, or those that `model.safetensors.index.json` names),
maps them, and checks that index and files agree. File names come from an untrusted index and must not leave the
folder; symlinks are followed, since a Hugging Face cache consists of them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from mixq.errors import ModelFileError, printable
from mixq.formats.header import TensorEntry
from mixq.formats.json_file import read_json_object
from mixq.formats.mapped import MappedShard

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD_NAME = re.compile(r"[\w.-]+\.safetensors", re.ASCII)
MAX_SHARDS = 4096


@dataclass(frozen=True, slots=True, eq=False)
class ShardSet:
    """Mapped shards, and the shard of each tensor."""

    shards: tuple[MappedShard, ...]
    owner: dict[str, MappedShard]

    @classmethod
    def open(cls, folder: Path) -> ShardSet:
        """Map every shard of a folder.

        Raises:
            ModelFileError: there are no safetensors files, one is missing or damaged, or the index does not fit them.
        """
        weight_map = _read_index(folder)
        names = sorted(set(weight_map.values())) if weight_map is not None else [SINGLE]
        return cls.of_files(folder, names, weight_map)

    @classmethod
    def of_files(cls, folder: Path, names: Sequence[str], weight_map: Mapping[str, str] | None = None) -> ShardSet:
        """Map the named files of a folder, which must have the tensors of `weight_map`, {tensor: file name}.

        Raises:
            ModelFileError: a file is missing or damaged, or does not fit `weight_map`.
        """
        missing = [name for name in names if not (folder / name).exists()]
        if missing:
            listed = ", ".join(missing[:3]) + (" and more" if len(missing) > 3 else "")
            raise ModelFileError(
                f"{printable(folder)}: {len(missing)} of {len(names)} shards are missing: {listed}.",
                hint="Finish the download, or quantize again.",
            )
        shards = {name: MappedShard(folder / name) for name in names}
        owner: dict[str, MappedShard] = {}
        for name, shard in shards.items():
            for tensor in shard.header.entries:
                if tensor in owner:
                    raise ModelFileError(f"tensor {tensor!r} is in two shards, {owner[tensor].path.name} and {name}.")
                owner[tensor] = shard
        for tensor, name in (weight_map or {}).items():
            if owner.get(tensor) is not shards[name]:
                raise ModelFileError(f"{INDEX}: tensor {printable(tensor)!r} is not in {name}, as the index says.")
        return cls(tuple(shards.values()), owner)

    def entry(self, name: str) -> TensorEntry | None:
        """Return a tensor's place; None if there is no such tensor."""
        shard = self.owner.get(name)
        return None if shard is None else shard.header.entries[name]

    @property
    def names(self) -> Collection[str]:
        """The names of all tensors."""
        return self.owner.keys()

    def tensor(self, name: str) -> Tensor:
        """Return a view of a tensor; KeyError if there is none."""
        return self.owner[name].tensor(name)

    def rows(self, name: str, first: int, last: int) -> Tensor:
        """Return rows first to last of a tensor, as a view; the tensor is taken as a matrix of its last axis."""
        return self.tensor(name).flatten(0, -2)[first:last]

    def file_of(self, name: str) -> str:
        """Return the name of the file that holds a tensor."""
        return self.owner[name].path.name

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors, without headers."""
        return sum(shard.header.file_size - shard.header.data_start for shard in self.shards)


def _read_index(folder: Path) -> dict[str, str] | None:
    """Return the index's {tensor: file name}, checked; None if there is only one file."""
    if (folder / SINGLE).exists():
        return None
    if not (folder / INDEX).exists():
        raise ModelFileError(f"{printable(folder)} has neither {INDEX} nor {SINGLE}.", hint=no_model_hint(folder))
    return parse_index(read_json_object(folder / INDEX))


def parse_index(index: Mapping[str, object], pattern: re.Pattern[str] = SHARD_NAME) -> dict[str, str]:
    """Return {tensor: file name} of a parsed index, whose file names must match `pattern`; raises ModelFileError."""
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelFileError(f"{INDEX}: weight_map is not an object, or empty.")
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or not pattern.fullmatch(name) or len(name) > 255:
            raise ModelFileError(
                f"{INDEX}: {printable(repr(name))}, given for {printable(tensor)!r}, is not the name of a "
                "weight file in this folder."
            )
    if len(set(weight_map.values())) > MAX_SHARDS:
        raise ModelFileError(f"{INDEX} names more than {MAX_SHARDS} shards.")
    return weight_map


def no_model_hint(folder: Path) -> str:
    """Return what to do about a folder without config.json or safetensors files."""
    if (folder / "job.json").exists():
        return "A quantize job did not finish here; run the same mixq quantize command again to resume it."
    others = [p.name for pattern in ("*.bin", "*.pt", "*.pth", "*.gguf") for p in sorted(folder.glob(pattern))]
    if others:
        return f"{printable(others[0])} cannot be loaded; mixq loads only safetensors files."
    return "Use the folder of a Hugging Face checkpoint, or one that mixq quantize wrote."
