"""The offline job: from a checkpoint to a model folder, one tensor at a time, resumed after any interruption.

Contract: `Job(source, target, ...)` reads headers and decides everything; nothing is written before `run`. `run` yields
events (see `events`) and leaves either a whole folder or one that the same call goes on with: job.json first, each
shard under its name only when whole, then tokenizer and other files, index, mixq.json, and config.json last. The bytes
of the folder depend on the source and the settings alone. At most two tensors are in memory, with the codes made of
the first: while it is searched and written, the next is read.

A folder with config.json is finished; one with job.json only is not. In a finished folder a repeated call writes only
the tokenizer and other side files that changed in the source, and says so.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from mixq.errors import ModelFileError, StorageError, UsageError, printable
from mixq.formats.architecture import Parameter
from mixq.formats.atomic import atomic_write_bytes, storage_error
from mixq.formats.manifest import Manifest
from mixq.formats.mix import AS_IT_IS, Mix, kind_of
from mixq.formats.nl4 import DEFAULT_TABLE
from mixq.formats.packed import PackedLinear
from mixq.formats.scheme import Scheme
from mixq.formats.shard_writer import ShardWriter
from mixq.formats.shards import INDEX
from mixq.quantize import journal as journals
from mixq.quantize import lock
from mixq.quantize.events import Event, Finished, Notice, Result, ShardDone, Started, TensorDone
from mixq.quantize.journal import FinishedShard, Journal, LinearError
from mixq.quantize.keep import kept_dtype, kept_kinds
from mixq.quantize.layout import STORED_DTYPE, Item, all_items, index_of, plan_shards, target_config
from mixq.quantize.nonfinite import count_nonfinite, zero_nonfinite
from mixq.quantize.quantized import Quantized
from mixq.quantize.report import ErrorReport, SizeTable, sizes_of_items
from mixq.quantize.scale_search import search
from mixq.quantize.sources.open import open_source
from mixq.quantize.sources.source import Source
from mixq.quantize.target import Target
from mixq.quantize.threads import one_ahead

SEARCH_VERSION = 1
"""Goes up when the search gives other bytes: a job begun before is then not gone on with."""


@dataclass(frozen=True, slots=True)
class DryRun:
    """What a job would make and need; nothing was written."""

    source: str
    format: str
    mix: dict[str, str]
    sizes: SizeTable
    disk_needed: int
    disk_free: int
    notices: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return it for --json."""
        return {
            "source": self.source,
            "format": self.format,
            "mix": self.mix,
            "sizes": self.sizes.as_dict(),
            "disk_needed": self.disk_needed,
            "disk_free": self.disk_free,
            "notices": list(self.notices),
        }


class Job:
    """One quantize job, checked against its source.

    Args:
        source: a folder or GGUF file that `open_source` opens, or a `Source`.
        target: the folder to make; empty, not there yet, or begun by the same job.
        format, group, mix: see `Mix.resolve`.
        table: the code values of nl4.
        keep: take over, without loss, what the source has packed as w4 or w8 already. Its scales stay float16 where
            they are, and what is not quantized is then stored in float16 too.
        allow_nonfinite: store weights that are NaN, infinite or beyond bfloat16 as 0 and say so, instead of refusing.

    Raises:
        ModelFileError: a source that is missing, damaged, unknown or quantized already.
        UsageError: settings that make no sense, or a target that is the source, a file, or somebody else's folder.
    """

    def __init__(
        self,
        source: Source | Path | str,
        target: Path | str,
        *,
        format: str = "nl4",
        group: int | None = None,
        mix: str | None = None,
        table: Sequence[int] = DEFAULT_TABLE,
        keep: bool = False,
        allow_nonfinite: bool = False,
    ) -> None:
        self.source = open_source(source) if isinstance(source, Path | str) else source
        self.target = Path(target)
        self.table = tuple(table)
        self.allow_nonfinite = allow_nonfinite
        kept, kept_notes = kept_kinds(self.source) if keep else ({}, ())
        if format == AS_IT_IS:
            self.mix = Mix.unquantized()
        else:
            self.mix = Mix.resolve(self.source.config, format=format, group=group, mix=mix, table=self.table, kept=kept)
        self.dtype = kept_dtype(self.source) if kept else STORED_DTYPE
        self._kept_notes = kept_notes
        self._side_files = self.source.side_files()
        self.shards = plan_shards(
            self.source.config, self.mix, self.dtype, lambda parameter: self._keeps(kept, parameter)
        )
        self.sizes = sizes_of_items(self.source.config, all_items(self.shards), self.source.nbytes)
        self.config = target_config(self.source.raw_config, self.source.config, self.mix.quantization, self.dtype)
        self.settings: dict[str, Any] = {
            "format": format,
            "mix": self.mix.as_dict(),
            "table": list(self.table),
            "search": SEARCH_VERSION,
            "keep": keep,
            "allow_nonfinite": allow_nonfinite,
        }
        self.origin = {
            "name": self.source.name,
            "fingerprint": self.source.fingerprint(),
            "dtype": self.source.config.dtype,
            "nbytes": self.source.nbytes,
        }
        self._folder = Target(
            self.target, self.settings, self.origin, {shard.file: shard.size for shard in self.shards}
        )
        self._folder.look(self.source.path)

    def _keeps(self, kept: Mapping[str, Scheme], parameter: Parameter) -> bool:
        scheme = kept.get(kind_of(parameter)) if parameter.quantizable else None
        return scheme is not None and self.mix.scheme_of(parameter) == scheme

    def dry_run(self) -> DryRun:
        """Return sizes and needs."""
        return DryRun(
            self.source.name,
            self.mix.format,
            self.mix.as_dict(),
            self.sizes,
            self._disk_needed(self._folder.look(self.source.path)),
            self._folder.disk_free(),
            self._notices(),
        )

    def run(self) -> Iterator[Event]:
        """Do the job; closing the iterator, or an exception in its reader, interrupts it cleanly.

        Raises:
            StorageError: not enough disk (exact bytes, before anything is written), or a write that failed.
            ModelFileError: a weight that is NaN or infinite, by the tensor's name.
            UsageError: the source lost a side file since the folder was finished.
            MixqError: another job is working on the target.
        """
        if not self.target.is_dir():
            self._folder.check_disk(self._disk_needed(None))
            self._folder.make()
        with lock.TargetLock(self.target):
            journal = self._folder.look(self.source.path)
            if self._folder.is_finished():
                yield from self._finished_before()
                return
            self._folder.check_disk(self._disk_needed(journal))
            notices = list(self._notices())
            if journal is None:
                journal = Journal(self.settings, self.origin)
            else:
                notices += self._folder.clean(journal)
            journal.write(self.target)
            yield from self._work(journal, notices)

    def _work(self, journal: Journal, notices: list[str]) -> Iterator[Event]:
        before = len(journal.shards)
        total = sum(shard.weights for shard in self.shards)
        done = sum(shard.weights for shard in self.shards if shard.file in journal.shards)
        yield Started(len(self.shards), before, total, done, sum(shard.size for shard in self.shards))
        for text in notices:
            yield Notice(text)
        for number, shard in enumerate(self.shards, 1):
            if shard.file in journal.shards:
                continue
            errors: dict[str, LinearError] = {}
            path = self.target / shard.file
            with ThreadPoolExecutor(1) as ahead, self._cancelling(), ShardWriter(path, shard.specs()) as writer:
                read = one_ahead(self._read, shard.items, ahead)
                for item, (weight, notice) in zip(shard.items, read, strict=True):
                    if notice is not None:
                        notices.append(notice)
                        yield Notice(notice)
                    error = self._write(item, weight, writer, errors)
                    done += item.parameter.numel
                    yield TensorDone(item.parameter.name, item.scheme_text, error, done, total)
                digest = writer.finish()
            journal.shards[shard.file] = FinishedShard(digest, errors)
            journal.write(self.target)
            yield ShardDone(shard.file, digest, shard.size, number, len(self.shards))
        yield Finished(self._finish(journal, tuple(notices), before))

    @contextmanager
    def _cancelling(self) -> Iterator[None]:
        """End the read that is under way in another thread when this one is interrupted or fails."""
        try:
            yield
        except BaseException:
            self.source.cancel()
            raise

    def _read(self, item: Item) -> tuple[Tensor | PackedLinear, str | None]:
        """Return a tensor of the source, checked, and what was done to it if something was."""
        name = item.parameter.name
        if item.kept:
            return self.source.packed(item.parameter.module), None
        tensor = self.source.tensor(name)
        bad, first = count_nonfinite(tensor, self.dtype)
        if bad == 0:
            return tensor, None
        limit = str(self.dtype).removeprefix("torch.")
        what = f"{name} has {bad:,} {'weight' if bad == 1 else 'weights'} NaN, infinite or beyond {limit}"
        if not self.allow_nonfinite:
            raise ModelFileError(
                f"{what}, the first at {list(first)}.",
                hint="The checkpoint is damaged: download it again. (--allow-nonfinite stores 0 in their place.)",
            )
        return zero_nonfinite(tensor, self.dtype), f"{what}; 0 is stored in their place."

    def _write(
        self, item: Item, weight: Tensor | PackedLinear, writer: ShardWriter, errors: dict[str, LinearError]
    ) -> float | None:
        """Write a tensor as its scheme has it and return what was lost; None where it is not quantized."""
        if item.scheme is None:
            assert isinstance(weight, Tensor)
            writer.write(item.parameter.name, weight.to(self.dtype))
            return None
        if isinstance(weight, PackedLinear):
            found = Quantized(weight, 0.0, 0.0)
        else:
            found = search(weight, item.scheme, table=self.table, scale_dtype=self.dtype)
        for suffix, tensor in found.packed.tensors.items():
            writer.write(f"{item.parameter.module}.{suffix}", tensor)
        error = LinearError(str(item.scheme), found.relative_squared_error, found.group_error)
        errors[item.parameter.module] = error
        return error.relative_squared_error

    def _finish(self, journal: Journal, notices: tuple[str, ...], before: int) -> Result:
        """Write everything but the shards, config.json last, and remove the journal."""
        contents = self._side_contents()
        contents[INDEX] = _json_bytes(index_of(self.shards))
        contents["config.json"] = _json_bytes(self.config)
        errors = {linear: e for shard in self.shards for linear, e in journal.shards[shard.file].errors.items()}
        manifest = Manifest(
            source=journal.source,
            settings=journal.settings,
            shards={shard.file: journal.shards[shard.file].sha256 for shard in self.shards},
            files={name: hashlib.sha256(content).hexdigest() for name, content in contents.items()},
            errors={linear: error.relative_squared_error for linear, error in errors.items()},
            group_errors={linear: error.group_error for linear, error in errors.items()},
        )
        config = contents.pop("config.json")
        for name, content in contents.items():
            atomic_write_bytes(self.target / name, content)
        manifest.write(self.target)
        atomic_write_bytes(self.target / "config.json", config)
        try:
            (self.target / journals.FILE_NAME).unlink()
        except OSError as error:
            raise storage_error(self.target / journals.FILE_NAME, error) from error
        return Result(self.target, self.mix.format, self.sizes, ErrorReport.of(errors), notices, before)

    def _finished_before(self) -> Iterator[Event]:
        """Bring the side files of a folder that this very job has finished before up to date, and yield its result."""
        manifest = self._folder.finished_manifest()
        notices = list(self._notices())
        updated = self._update_side_files(manifest)
        for text in updated:
            notices.append(text)
            yield Notice(text)
        schemes = {item.parameter.module: item.scheme_text for item in all_items(self.shards)}
        errors = {
            linear: LinearError(schemes.get(linear, "?"), value, manifest.group_errors.get(linear, value))
            for linear, value in manifest.errors.items()
        }
        yield Finished(
            Result(
                self.target,
                self.mix.format,
                self.sizes,
                ErrorReport.of(errors),
                tuple(notices),
                len(self.shards),
                already_done=not updated,
            )
        )

    def _update_side_files(self, manifest: Manifest) -> list[str]:
        """Write the side files that are not as the source has them, mixq.json last, and say which.

        Killed in between, the next run finds the same difference. Nothing is removed from a finished folder.

        Raises:
            UsageError: the source has lost a side file that the folder was finished with.
        """
        contents = self._side_contents()
        own = {name: manifest.files[name] for name in (INDEX, "config.json") if name in manifest.files}
        lost = [name for name in manifest.files if name not in contents and name not in own]
        if lost:
            raise UsageError(
                f"{printable(self.target)} was finished with {printable(lost[0])}, which the source no longer has.",
                hint="Put it back into the source, or name another folder.",
            )
        files = {**{name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}, **own}
        notices = []
        for name, content in contents.items():
            path = self.target / name
            if not path.is_file() or _read_bytes(path) != content:
                atomic_write_bytes(path, content)
                notices.append(f"{name} was missing or not as in the source; it is written anew, the weights are kept.")
        if files != manifest.files:
            changed = [name for name in contents if files[name] != manifest.files.get(name)]
            replace(manifest, files=files).write(self.target)
            notices.append(f"mixq.json has the new sum of {printable(', '.join(changed))}.")
        return notices

    def _side_contents(self) -> dict[str, bytes]:
        return dict(self._side_files)

    def _notices(self) -> tuple[str, ...]:
        """Return what is done otherwise than one might think, known before the job begins."""
        notices = [*self.source.notices, *self.mix.notes, *self._kept_notes]
        if "tokenizer.model" not in self._side_files:
            notices.append("the source has no tokenizer.model: the folder will run on token ids only.")
        window = self.source.raw_config.get("sliding_window")
        if window is not None and self.config.get("sliding_window") is None:
            notices.append(f"sliding_window {printable(window)} becomes null: Mixtral was not trained with one.")
        dtype, stored = self.source.config.dtype, str(self.dtype).removeprefix("torch.")
        if dtype != stored:
            notices.append(f"what stays unquantized is stored in {stored}; the source has {dtype}.")
        return tuple(notices)

    def _disk_needed(self, journal: Journal | None) -> int:
        """Return the bytes still to be written."""
        texts = len(_json_bytes(index_of(self.shards))) + len(_json_bytes(self.config))
        copied = sum(len(content) for content in self._side_contents().values())
        records = sum(item.scheme is not None for item in all_items(self.shards)) + len(self.shards) + 16
        return self._folder.disk_needed(journal, texts + copied, records)


def quantize(
    source: Source | Path | str,
    target: Path | str,
    *,
    format: str = "nl4",
    group: int | None = None,
    mix: str | None = None,
    keep: bool = False,
    allow_nonfinite: bool = False,
    on_event: Callable[[Event], None] | None = None,
) -> Result:
    """Quantize a checkpoint into a model folder, going on where an interrupted call stopped.

    Args:
        source: a folder or GGUF file that `open_source` opens, or a `Source`.
        target: the folder to make.
        format: nl4, w4, w8 or nf4.
        group: group size of the format's own scheme.
        mix: `all-nl4`, or pairs such as "experts=nl4:32,o=w8,lm_head=bf16".
        keep: take over without loss what the source has packed as w4 or w8.
        allow_nonfinite: store NaN and infinite weights as 0 instead of refusing them.
        on_event: called with every event, for progress.

    Raises:
        MixqError: see `Job` and `Job.run`.
    """
    job = Job(source, target, format=format, group=group, mix=mix, keep=keep, allow_nonfinite=allow_nonfinite)
    result = None
    for event in job.run():
        if on_event is not None:
            on_event(event)
        if isinstance(event, Finished):
            result = event.result
    assert result is not None
    return result


def _json_bytes(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StorageError(f"{printable(path)} cannot be read: {printable(error)}.") from error
