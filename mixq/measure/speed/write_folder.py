"""Writes a synthetic model: a folder as `mixq quantize` writes it, with the sizes of a real model, without a tokenizer.

Contract: `FolderJob` computes sizes and checks before anything is written; `run` writes one shard after the other, with
memory for one, config.json last. After an error or Ctrl-C it removes the folder. The weights are those of
`SyntheticWeights.make` with the same arguments.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mixq.errors import UsageError, printable
from mixq.formats.atomic import atomic_write_bytes, storage_error
from mixq.formats.manifest import Manifest
from mixq.formats.shard_writer import ShardWriter, shard_size
from mixq.formats.shards import INDEX
from mixq.measure.speed.synthetic import DEFAULT_MIX, Recipe, parts
from mixq.system.paths import check_free_space

SIDE_BYTES = 512
"""Upper bound of the bytes in index and mixq.json per tensor or file."""


class FolderJob:
    """A folder to be written.

    Args:
        target: a path that does not exist yet.
        model, layers, mix, seed: see `mixq.measure.speed.synthetic.synthetic_model`.

    Attributes:
        nbytes: of all shards.

    Raises:
        UsageError: the path exists, or an unknown preset or mix.
        StorageError: not enough disk space.
    """

    def __init__(
        self,
        target: Path,
        model: str | Mapping[str, Any],
        *,
        layers: int | None = None,
        mix: str = DEFAULT_MIX,
        seed: int = 0,
    ) -> None:
        self.target = target
        self.recipe = Recipe.of(model, layers=layers, mix=mix)
        self.seed = seed
        self._settings = {"made_up": True, "mix": mix, "seed": seed}
        self.nbytes = sum(shard_size(part.specs) for part in self.recipe.parts)
        if target.exists() or target.is_symlink():
            raise UsageError(f"{printable(target)} exists already.", hint="Choose a new folder.")
        files = sum(len(part.specs) for part in self.recipe.parts) + len(self.recipe.parts)
        hint = "Free some space, choose a folder on another disk, or write fewer layers: --layers N."
        check_free_space(target, self.nbytes + SIDE_BYTES * files, hint)

    def run(self, *, on_progress: Callable[[int, int], None] | None = None) -> None:
        """Write the folder.

        Args:
            on_progress: called with (bytes of shards written, bytes of all) after each.

        Raises:
            UsageError: the folder was created in the meantime.
            StorageError: a write failed.
        """
        try:
            self.target.parent.mkdir(parents=True, exist_ok=True)
            self.target.mkdir()
        except FileExistsError as error:
            raise UsageError(f"{printable(self.target)} exists already.") from error
        except OSError as error:
            raise storage_error(self.target, error) from error
        try:
            self._write(on_progress)
        except BaseException:
            shutil.rmtree(self.target, ignore_errors=True)  # created above, so it has only files of this job
            raise

    def _write(self, on_progress: Callable[[int, int], None] | None) -> None:
        total = len(self.recipe.parts)
        shards: dict[str, str] = {}
        weight_map: dict[str, str] = {}
        done = 0
        for number, (part, stored) in enumerate(parts(self.recipe, self.seed), 1):
            name = f"model-{number:05d}-of-{total:05d}.safetensors"
            with ShardWriter(self.target / name, part.specs) as writer:
                for tensor, values in stored.items():
                    writer.write(tensor, values)
                shards[name] = writer.finish()
                done += writer.size
            weight_map |= dict.fromkeys(part.specs, name)
            if on_progress is not None:
                on_progress(done, self.nbytes)
        config = _json_bytes(self._config())
        size = sum(part.tensor_bytes for part in self.recipe.parts)
        index = _json_bytes({"metadata": {"total_size": size}, "weight_map": weight_map})
        sums = {INDEX: hashlib.sha256(index).hexdigest(), "config.json": hashlib.sha256(config).hexdigest()}
        atomic_write_bytes(self.target / INDEX, index)
        Manifest({"name": f"synthetic-{self.recipe.name}"}, self._settings, shards, sums).write(self.target)
        atomic_write_bytes(self.target / "config.json", config)

    def _config(self) -> dict[str, Any]:
        config = dict(self.recipe.raw)
        config["architectures"] = [self.recipe.config.architecture]
        if self.recipe.mix is not None and self.recipe.mix.quantization is not None:
            config["quantization_config"] = self.recipe.mix.quantization.to_dict()
        return config


def _json_bytes(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
