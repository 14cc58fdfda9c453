"""The job: from a checkpoint to a model folder, one tensor at a time, resumable after any interruption.

Contract: `Job(source, target, ...)` reads headers and decides everything; nothing is written before `run`. `run` yields
events (see `events`) and leaves a complete folder or one that the same call resumes: it writes job.json first, then
each shard atomically, then tokenizer and other files, index, mixq.json, and config.json last. The folder's bytes depend
only on source and settings. At most two tensors are in memory (with a calibration, two blocks: a
layer's attention, or an expert), and the codes of one: while it is searched and written, the next is read.

A folder with config.json is finished; one with only job.json is not. In a finished folder a repeated call writes only
the tokenizer and other side files that changed in the source, and reports them.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixq.errors import ModelFileError, printable
from mixq.formats import lock
from mixq.formats.packed import PackedLinear
from mixq.formats.scheme import Scheme
from mixq.formats.shard_writer import ShardWriter
from mixq.quantize.calibrate import Importance
from mixq.quantize.calibration_run import CalibrationRun
from mixq.quantize.events import Event, Finished, Notice, Result, ShardDone, Started, TensorDone
from mixq.quantize.finishing import finish, finished_before
from mixq.quantize.job_plan import JobPlan
from mixq.quantize.journal import FinishedShard, Journal, LinearError
from mixq.quantize.keep import check_scales
from mixq.quantize.layout import Item, Shard, all_items
from mixq.quantize.nonfinite import count_nonfinite, zero_nonfinite
from mixq.quantize.quantized import Quantized
from mixq.quantize.report import ErrorReport
from mixq.quantize.scale_search import search
from mixq.quantize.sources.source import Source
from mixq.quantize.table_fit import fit_to_source
from mixq.quantize.threads import one_ahead
from mixq.system.paths import check_free_space

Weight = Tensor | PackedLinear

SAMPLE = (256, 4096)
"""Shape of the weights on which `Job.search_seconds` times the scale search."""


class Job(JobPlan):
    """A plan that can be run; see `JobPlan` for the arguments."""

    def run(self) -> Iterator[Event]:
        """Run the job; closing the iterator, or an exception in the code that reads it, interrupts it cleanly.

        Raises:
            StorageError: not enough disk (exact bytes, before anything is written), or a failed write.
            DoesNotFitError: not enough memory, before anything is written.
            ModelFileError: the named tensor has a weight that is NaN or infinite.
            UsageError: the source no longer has a side file of the finished folder.
            MixqError: another job is working on the target.
        """
        folder = self.folder
        if not self.target.is_dir():
            check_free_space(self.target, self.disk_needed(None))
            self.check_memory()
            folder.make()
        with lock.target_lock(self.target):
            journal = self.unfinished()
            if folder.is_finished():
                yield from self._finished_before()
                return
            check_free_space(self.target, self.disk_needed(journal))
            self.check_memory()
            notices = list(self.notices())
            if journal is None:
                journal = Journal(self.settings, self.origin)
            else:
                notices += folder.clean(journal)
            if self.calibration is not None:
                notices += self._restore(self.calibration, journal)
            journal.write(self.target)
            yield from self._work(journal, notices)

    def left(self) -> list[Shard]:
        """Return the unfinished shards."""
        journal = self.unfinished()
        return [shard for shard in self.shards if journal is None or shard.file not in journal.shards]

    def search_seconds(self) -> float:
        """Return the approximate seconds of the scale search for the unfinished shards, on this computer.

        A lower bound of the job's time: reading, writing and hashing are not included. The source is not read.
        """
        left: Counter[Scheme] = Counter()
        for item in all_items(self.left()):
            if item.scheme is not None and not item.kept:
                left[item.scheme] += item.parameter.numel
        sample = torch.randn(SAMPLE, generator=torch.Generator().manual_seed(0))
        seconds = 0.0
        for scheme, weights in left.items():
            # The first search loads libraries and starts threads.
            search(sample[:16], scheme, table=self.table, scale_dtype=self.dtype)
            began = time.perf_counter()
            search(sample, scheme, table=self.table, scale_dtype=self.dtype)
            seconds += weights * (time.perf_counter() - began) / sample.numel()
        return seconds

    def _work(self, journal: Journal, notices: list[str]) -> Iterator[Event]:
        shards, began = self.shards, time.monotonic()
        before = len(journal.shards)
        total = sum(shard.weights for shard in shards)
        done = sum(shard.weights for shard in shards if shard.file in journal.shards)
        skipped = done
        yield Started(len(shards), before, total, done, sum(shard.size for shard in shards))
        for text in notices:
            yield Notice(text)
        if self.fits_table and journal.table is None:
            journal.table = fit_to_source(self.source, self.shards)
            journal.write(self.target)
        for number, shard in enumerate(shards, 1):
            if shard.file in journal.shards:
                continue
            errors: dict[str, LinearError] = {}
            with (
                ThreadPoolExecutor(1) as ahead,
                self._cancelling(ahead),
                ShardWriter(self.target / shard.file, shard.specs()) as writer,
            ):
                blocks = self.blocks(shard)
                for block, read in zip(blocks, one_ahead(self._read, blocks, ahead), strict=True):
                    importance = self._importance(block, read)
                    for item, (weight, notice) in zip(block, read, strict=True):
                        if notice is not None:
                            notices.append(notice)
                            yield Notice(notice)
                        counts = importance.get(item.parameter.module)
                        error = self._write(item, weight, counts, writer, errors, journal.table)
                        done += item.parameter.numel
                        yield TensorDone(item.parameter.name, item.scheme_text, error, done, total)
                few = self._save_state(shard, journal)
                digest = writer.finish()
            journal.shards[shard.file] = FinishedShard(digest, errors, few)
            journal.write(self.target)
            self.folder.remove_states(journal.state)
            yield ShardDone(shard.file, digest, shard.size, number, len(shards))
        few_tokens = {expert: n for finished in journal.shards.values() for expert, n in finished.few_tokens.items()}
        if few_tokens and self.calibration is not None:
            text = _few_tokens(few_tokens, self.calibration.tokens)
            notices.append(text)
            yield Notice(text)
        if self.source.fingerprint() != self.origin["fingerprint"]:
            raise ModelFileError(
                f"{printable(self.source.name)} was changed while it was read.",
                hint="Delete the target folder, and run the command again without changing the checkpoint.",
            )
        found = finish(self, journal)
        seconds = time.monotonic() - began
        yield Finished(self._result(found, notices, before, seconds=seconds, weights_done=total - skipped))

    @contextmanager
    def _cancelling(self, ahead: Executor) -> Iterator[None]:
        """Stop current and later reads of another thread when this one is interrupted or fails."""
        try:
            yield
        except BaseException:
            ahead.shutdown(wait=False, cancel_futures=True)
            self.source.cancel()
            raise

    def _read(self, block: Sequence[Item]) -> list[tuple[Weight, str | None]]:
        """Return the tensors of a block, checked, each with a notice if it was changed."""
        return [self._read_one(item) for item in block]

    def _read_one(self, item: Item) -> tuple[Weight, str | None]:
        name, dtype = item.parameter.name, self.dtype
        if item.kept:
            packed = self.source.packed(item.parameter.module)
            check_scales(packed, item.parameter.module, dtype)
            return packed, None
        tensor = self.source.tensor(name)
        bad, first = count_nonfinite(tensor, dtype)
        if bad == 0:
            return tensor, None
        limit = str(dtype).removeprefix("torch.")
        what = f"{name} has {bad:,} {'weight' if bad == 1 else 'weights'} NaN, infinite or beyond {limit}"
        if not self.allow_nonfinite:
            raise ModelFileError(
                f"{what}, the first at {list(first)}.",
                hint="The checkpoint is damaged: download it again. (--allow-nonfinite stores 0 instead.)",
            )
        return zero_nonfinite(tensor, dtype), f"{what}; 0 is stored instead."

    def _importance(self, block: Sequence[Item], read: Sequence[tuple[Weight, str | None]]) -> Importance:
        """Run a calibration on a block and return the importance of its linear layers; empty without a calibration."""
        if self.calibration is None:
            return {}
        weights = {item.parameter.name: weight for item, (weight, _) in zip(block, read, strict=True)}
        return self.calibration.importance(block, weights)

    def _write(
        self,
        item: Item,
        weight: Weight,
        importance: Tensor | None,
        writer: ShardWriter,
        errors: dict[str, LinearError],
        table: Sequence[int] | None,
    ) -> float | None:
        """Write a tensor in its scheme and return its error; None if it is not quantized."""
        dtype = self.dtype
        if item.scheme is None:
            assert isinstance(weight, Tensor)
            writer.write(item.parameter.name, weight.to(dtype))
            return None
        if isinstance(weight, PackedLinear):
            found = Quantized(weight, 0.0, 0.0)
        else:
            table = table or self.table
            found = search(weight, item.scheme, table=table, scale_dtype=dtype, importance=importance)
        for suffix, tensor in found.packed.tensors.items():
            writer.write(f"{item.parameter.module}.{suffix}", tensor)
        error = LinearError(str(item.scheme), found.relative_squared_error, found.group_error)
        errors[item.parameter.module] = error
        return error.relative_squared_error

    def _restore(self, calibration: CalibrationRun, journal: Journal) -> list[str]:
        """Advance a calibration to the first unfinished layer; if its state is lost, restart the job."""
        notices = []
        finished = [shard.file in journal.shards for shard in self.shards]
        if all(finished):
            return []
        if any(finished):
            # The state after the last shard is of no use if an earlier shard is damaged.
            next_one = finished.index(False)
            state = self.folder.state_path(next_one)
            sha256 = None if any(finished[next_one:]) else journal.state.get(state.name)
            if sha256 is not None and calibration.restore(state, sha256):
                return []
            notices.append("the calibration's state is missing or damaged, so the job starts from the beginning.")
            self.folder.forget(journal)
        calibration.begin(self.source.tensor("model.embed_tokens.weight"))
        return notices

    def _save_state(self, shard: Shard, journal: Journal) -> dict[str, int]:
        """Save a calibration's state after a layer, and return the layer's experts that received few tokens."""
        calibration, layer = self.calibration, shard.items[0].parameter.layer
        if calibration is None or layer is None:
            return {}
        path = self.folder.state_path(layer + 1)
        journal.state = {path.name: calibration.save(path)}
        return calibration.few_tokens(layer)

    def _finished_before(self) -> Iterator[Event]:
        """Yield the result of a folder that the same job has finished before, after updating its side files."""
        notices = list(self.notices())
        errors, updated = finished_before(self)
        for text in updated:
            notices.append(text)
            yield Notice(text)
        yield Finished(self._result(errors, notices, len(self.shards), already_done=not updated))

    def _result(self, errors: Mapping[str, LinearError], notices: Sequence[str], before: int, **further: Any) -> Result:
        report = ErrorReport.of(errors)
        return Result(self.target, self.mix.format, self.sizes, report, tuple(notices), before, **further)


def _few_tokens(few: Mapping[str, int], tokens: int) -> str:
    """Return the notice about experts that received few tokens."""
    first = min(few, key=lambda expert: (few[expert], expert))
    return (
        f"{len(few)} {'expert' if len(few) == 1 else 'experts'} received few of the calibration text's {tokens:,} "
        f"tokens ({first}: {few[first]}); the statistics of their layer's tokens are used too. mixq.json lists them."
    )


def quantize(
    source: Source | Path | str,
    target: Path | str,
    *,
    on_event: Callable[[Event], None] | None = None,
    **settings: Any,
) -> Result:
    """Quantize a checkpoint into a model folder, resuming an interrupted call.

    Args:
        source: a folder or GGUF file that `open_source` opens, or a `Source`.
        target: the folder to write.
        on_event: called with every event, for progress.
        settings: format, group, mix, table, recipe, keep, calibrate, allow_nonfinite; see `JobPlan`.

    Raises:
        MixqError: see `Job` and `Job.run`.
    """
    result = None
    for event in Job(source, target, **settings).run():
        if on_event is not None:
            on_event(event)
        if isinstance(event, Finished):
            result = event.result
    assert result is not None
    return result
