"""The decisions of a job before it writes anything: schemes, files, sizes, disk, memory, and notices for the user.

Contract: `JobPlan` reads only headers and small files. Its `settings` and `origin` determine the bytes of the folder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mixq.config import format_size
from mixq.errors import DoesNotFitError, UsageError, did_you_mean, printable
from mixq.formats.architecture import Parameter
from mixq.formats.folder import SENTENCEPIECE, TOKENIZERS
from mixq.formats.mix import AS_IT_IS, Mix, kind_of
from mixq.formats.nl4 import DEFAULT_TABLE, is_table
from mixq.formats.scheme import Scheme
from mixq.quantize.calibration_run import CalibrationRun, CalibrationText, blocks
from mixq.quantize.journal import Journal
from mixq.quantize.keep import kept_dtype, kept_kinds
from mixq.quantize.layout import STORED_DTYPE, Item, Shard, all_items, index_of, plan_shards, target_config
from mixq.quantize.report import SizeTable, sizes_of_items
from mixq.quantize.sources.open import open_source
from mixq.quantize.sources.source import Source
from mixq.quantize.target import Target
from mixq.system.memory import available_memory
from mixq.system.paths import free_space
from mixq.text.open import tokenizer_of

SEARCH_VERSION = 1
"""Increment when the search output changes; unfinished older jobs are refused."""

DEFAULT, FIT = "default", "fit"
"""Values of `table`: the table for normally distributed weights, or one fitted to the model's weights."""

PROCESS_MEMORY = 400 << 20
"""Bytes that Python, torch and buffers take besides the tensors."""


@dataclass(frozen=True, slots=True)
class DryRun:
    """The output and needs of a job; nothing was written."""

    source: str
    format: str
    mix: dict[str, str]
    sizes: SizeTable
    disk_needed: int
    disk_free: int
    memory_needed: int
    notices: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return it for --json."""
        return {**asdict(self), "sizes": self.sizes.as_dict(), "notices": list(self.notices)}


class JobPlan:
    """One quantize job, checked against its source.

    Args:
        source: a folder or GGUF file that `open_source` opens, or a `Source`.
        target: the folder to write; empty, not existing, or started by the same job.
        format, group, mix, recipe: see `Mix.resolve`; format `bf16` quantizes nothing.
        table: the code values of nl4; `default`, or `fit` to fit them to the model's weights.
        keep: copy linear layers that the source has as w4 or w8, without loss. float16 scales stay float16, and
            unquantized tensors are then stored in float16 too.
        calibrate: a text; the scale search then weights each input channel by its magnitude on that text.
        allow_nonfinite: store weights that are NaN, infinite or beyond bfloat16 as 0 and report them, instead of
            refusing.

    Raises:
        ModelFileError: the source is missing, damaged, unknown or quantized already.
        UsageError: the settings contradict each other, or the target is the source, a file, or a folder with other
            content.
    """

    def __init__(
        self,
        source: Source | Path | str,
        target: Path | str,
        *,
        format: str = "nl4",
        group: int | None = None,
        mix: str | None = None,
        table: Sequence[int] | str = DEFAULT,
        recipe: Mapping[str, Scheme | None] | None = None,
        keep: bool = False,
        calibrate: CalibrationText | None = None,
        allow_nonfinite: bool = False,
    ) -> None:
        self.source = open_source(source) if isinstance(source, Path | str) else source
        self.target = Path(target)
        if isinstance(table, str) and table not in (DEFAULT, FIT):
            raise UsageError(
                f"table is {printable(table)!r}; it must be {DEFAULT} or {FIT}." + did_you_mean(table, (DEFAULT, FIT))
            )
        if not isinstance(table, str) and not is_table(list(table)):
            raise UsageError("a table has 16 ascending whole numbers from -128 to 127.")
        self.fits_table = table == FIT
        self.table = DEFAULT_TABLE if isinstance(table, str) else tuple(table)
        self.allow_nonfinite = allow_nonfinite
        self._kept, self._kept_notes = kept_kinds(self.source) if keep else ({}, ())
        config = self.source.config
        if format == AS_IT_IS:
            if group or mix or recipe or keep or self.fits_table:
                raise UsageError(
                    f"format {AS_IT_IS} quantizes nothing, so it cannot have a group, mix, recipe, table or keep."
                )
            self.mix = Mix.unquantized()
        else:
            self.mix = Mix.resolve(
                config, format=format, group=group, mix=mix, table=self.table, kept=self._kept, recipe=recipe or {}
            )
        if self.fits_table and not any(scheme and scheme.name == "nl4" for scheme in self.mix.schemes.values()):
            raise UsageError(f"table {FIT} has nothing to fit: no linear layer of this job is nl4.")
        self.dtype = kept_dtype(self.source) if self._kept else STORED_DTYPE
        self.shards = plan_shards(config, self.mix, self.dtype, self._keeps)
        self.sizes = sizes_of_items(config, all_items(self.shards), self.source.nbytes)
        self.side_files = self.source.side_files()
        self.calibration = self._calibration(calibrate)
        self.settings: dict[str, Any] = {
            "format": format,
            "mix": self.mix.as_dict(),
            "table": FIT if self.fits_table else list(self.table),
            "search": SEARCH_VERSION,
            "keep": keep,
            "calibrate": None if calibrate is None else self._calibration_settings(calibrate),
            "allow_nonfinite": allow_nonfinite,
        }
        revision = self.source.revision
        self.origin = {
            "name": printable(self.source.name, 400),
            **({} if revision is None else {"revision": revision}),
            "fingerprint": self.source.fingerprint(),
            "dtype": config.dtype,
            "nbytes": self.source.nbytes,
        }
        state = self.calibration.state_size if self.calibration else 0
        self.folder = Target(
            self.target, self.settings, self.origin, {shard.file: shard.size for shard in self.shards}, state
        )
        self.unfinished()

    def unfinished(self) -> Journal | None:
        """Return the journal of this job in its target, if it was interrupted; raises what `Target.look` raises."""
        return self.folder.look(self.source.path)

    def _keeps(self, parameter: Parameter) -> bool:
        scheme = self._kept.get(kind_of(parameter)) if parameter.quantizable else None
        return scheme is not None and self.mix.scheme_of(parameter) == scheme

    def _calibration_settings(self, text: CalibrationText) -> dict[str, Any]:
        assert self.calibration is not None
        return {**text.as_dict(), **self.calibration.as_dict()}

    def _calibration(self, text: CalibrationText | None) -> CalibrationRun | None:
        if text is None:
            return None
        tokenizer = tokenizer_of(self.side_files)
        if tokenizer is None:
            raise UsageError(
                "--calibrate needs a tokenizer, but the source has no tokenizer.model or tokenizer.json.",
                hint="Copy it into the source's folder, or omit --calibrate.",
            )
        if not any(item.scheme and item.scheme.name != "nf4" for item in all_items(self.shards)):
            raise UsageError(
                f"--calibrate has no effect on {self.mix.format}.",
                hint="Omit --calibrate, or use --format nl4, w4 or w8.",
            )
        windows, vocabulary = text.windows(tokenizer), self.source.config.vocab_size
        largest = max(int(window.max()) for window in windows)
        if largest >= vocabulary:
            raise UsageError(
                f"{tokenizer.path} has token {largest}, but the model has only {vocabulary} tokens.",
                hint=f"Copy the model's {tokenizer.path} into the source's folder.",
            )
        return CalibrationRun(self.source.config, windows)

    def blocks(self, shard: Shard) -> list[tuple[Item, ...]]:
        """Return a shard's tensors in groups that are read together: single tensors, or a calibration's blocks."""
        return [(item,) for item in shard.items] if self.calibration is None else list(blocks(shard.items))

    def config(self, table: Sequence[int]) -> dict[str, Any]:
        """Return the target's config.json, with the code values of nl4."""
        quantization = self.mix.quantization
        if quantization is not None and quantization.method == "mixq":
            quantization = replace(quantization, table=tuple(table))
        return target_config(self.source.raw_config, self.source.config, quantization, self.dtype)

    def dry_run(self) -> DryRun:
        """Return sizes and needs."""
        return DryRun(
            source=self.source.name,
            format=self.mix.format,
            mix=self.mix.as_dict(),
            sizes=self.sizes,
            disk_needed=self.disk_needed(self.unfinished()),
            disk_free=free_space(self.target),
            memory_needed=self.memory_needed(),
            notices=self.notices(),
        )

    def notices(self) -> tuple[str, ...]:
        """Return the notices that are known before the job starts."""
        notices = [*self.source.notices, *self.mix.notes, *self._kept_notes]
        kept = dict.fromkeys(kind_of(item.parameter) for item in all_items(self.shards) if item.kept)
        if kept:
            notices.append(f"{', '.join(kept)}: copied from the source without loss.")
        if not any(name in self.side_files for name in TOKENIZERS):
            notices.append(
                "the source has no tokenizer.model or tokenizer.json, so the folder can be used only with token ids."
            )
        elif SENTENCEPIECE not in self.side_files:
            notices.append("the source has only tokenizer.json: to use text, `pip install 'mixq[tokenizers]'`.")
        window = self.source.raw_config.get("sliding_window")
        if window is not None and self.source.config.sliding_window is None:
            notices.append(f"sliding_window {printable(window)} becomes null: Mixtral was not trained with one.")
        dtype, stored = self.source.config.dtype, str(self.dtype).removeprefix("torch.")
        if dtype != stored:
            notices.append(f"unquantized tensors are stored in {stored}; the source has {dtype}.")
        return tuple(notices)

    def disk_needed(self, journal: Journal | None) -> int:
        """Return the bytes that remain to be written."""
        texts = len(json_bytes(index_of(self.shards))) + len(json_bytes(self.config(self.table)))
        copied = sum(len(content) for content in self.side_files.values())
        records = sum(item.scheme is not None for item in all_items(self.shards)) + len(self.shards) + 16
        return self.folder.disk_needed(journal, texts + copied, records)

    def memory_needed(self) -> int:
        """Return the approximate peak memory: two blocks, and one packed tensor."""
        blocks = [block for shard in self.shards for block in self.blocks(shard)]
        largest = max(sum(item.parameter.numel for item in block) for block in blocks)
        made = max(item.nbytes for item in all_items(self.shards))
        text = self.calibration.memory if self.calibration else 0
        return PROCESS_MEMORY + 2 * self.source.itemsize * largest + 2 * made + text

    def check_memory(self) -> None:
        """Raise DoesNotFitError if less memory is free than the job needs."""
        needed, available = self.memory_needed(), available_memory()
        if available is not None and needed > available:
            raise DoesNotFitError(
                f"the job takes about {format_size(needed)} of memory, but {format_size(available)} are free.",
                hint="Close other programs"
                + (
                    ", or use fewer --calibrate-tokens."
                    if self.calibration
                    else "; the need depends on the largest tensor and cannot be reduced."
                ),
            )


def json_bytes(content: Mapping[str, Any]) -> bytes:
    """Return a JSON file's content, indented."""
    # Lone surrogates, which UTF-8 cannot hold, become JSON escapes.
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")
