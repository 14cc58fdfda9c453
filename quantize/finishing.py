"""The end of a job: everything of the folder that is no shard, config.json last; and a finished folder seen again.

Contract: what `finish` writes depends on plan and journal alone. `finished_before` writes only the tokenizer and other
side files that changed in the source.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, replace
from pathlib import Path

from mixq.errors import StorageError, UsageError, printable
from mixq.formats.atomic import atomic_write_bytes, storage_error
from mixq.formats.manifest import Manifest
from mixq.formats.shards import INDEX
from mixq.quantize import journal as journals
from mixq.quantize.job_plan import JobPlan, json_bytes
from mixq.quantize.journal import Journal, LinearError
from mixq.quantize.layout import all_items, index_of
from mixq.quantize.sources.huggingface import SIDE_FILES

CONFIG = "config.json"


def finish(plan: JobPlan, journal: Journal) -> dict[str, LinearError]:
    """Write everything but the shards, config.json last, remove the journal, and return the errors by Linear."""
    contents = dict(plan.side_files)
    contents[INDEX] = json_bytes(index_of(plan.shards))
    contents[CONFIG] = json_bytes(plan.config(journal.table or plan.table))
    finished = [journal.shards[shard.file] for shard in plan.shards]
    errors = {linear: error for shard in finished for linear, error in shard.errors.items()}
    manifest = Manifest(
        source=journal.source,
        settings=journal.settings,
        shards={shard.file: journal.shards[shard.file].sha256 for shard in plan.shards},
        files={name: hashlib.sha256(content).hexdigest() for name, content in contents.items()},
        errors={linear: error.relative_squared_error for linear, error in errors.items()},
        group_errors={linear: error.group_error for linear, error in errors.items()},
        sizes=[asdict(row) for row in plan.sizes.rows],
        few_tokens={expert: tokens for shard in finished for expert, tokens in shard.few_tokens.items()},
    )
    config = contents.pop(CONFIG)
    _remove_lost_side_files(plan)
    for name, content in contents.items():
        atomic_write_bytes(plan.target / name, content)
    manifest.write(plan.target)
    atomic_write_bytes(plan.target / CONFIG, config)
    plan.folder.remove_states()
    try:
        (plan.target / journals.FILE_NAME).unlink()
    except OSError as error:
        raise storage_error(plan.target / journals.FILE_NAME, error) from error
    return errors


def _remove_lost_side_files(plan: JobPlan) -> None:
    """Remove what an interrupted run has copied and the source has lost since."""
    for name in SIDE_FILES:
        path = plan.target / name
        if name not in plan.side_files and path.exists():
            try:
                path.unlink()
            except OSError as error:
                raise storage_error(path, error) from error


def finished_before(plan: JobPlan) -> tuple[dict[str, LinearError], list[str]]:
    """Bring the side files of a folder that this very job has finished up to date.

    Returns:
        the errors by Linear, and a sentence for each file that was written.
    """
    manifest = plan.folder.finished_manifest()
    updated = _update_side_files(plan, manifest)
    schemes = {item.parameter.module: item.scheme_text for item in all_items(plan.shards)}
    errors = {
        linear: LinearError(schemes.get(linear, "?"), value, manifest.group_errors.get(linear, value))
        for linear, value in manifest.errors.items()
    }
    return errors, updated


def _update_side_files(plan: JobPlan, manifest: Manifest) -> list[str]:
    """Write the side files that are not as the source has them, mixq.json last, and say which.

    Killed in between, the next run finds the same difference. Nothing is removed from a finished folder.

    Raises:
        UsageError: the source has lost a side file that the folder was finished with.
    """
    contents = plan.side_files
    own = {name: manifest.files[name] for name in (INDEX, CONFIG) if name in manifest.files}
    lost = [name for name in manifest.files if name not in contents and name not in own]
    if lost:
        raise UsageError(
            f"{printable(plan.target)} was finished with {printable(lost[0])}, which the source no longer has.",
            hint="Put it back into the source, or name another folder.",
        )
    files = {**{name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}, **own}
    notices = []
    for name, content in contents.items():
        path = plan.target / name
        if not path.is_file() or _read_bytes(path) != content:
            atomic_write_bytes(path, content)
            notices.append(f"{name} was missing or not as in the source; it is written anew, the weights are kept.")
    if files != manifest.files:
        changed = [name for name in contents if files[name] != manifest.files.get(name)]
        replace(manifest, files=files).write(plan.target)
        notices.append(f"mixq.json has the new sum of {printable(', '.join(changed))}.")
    return notices


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StorageError(f"{printable(path)} cannot be read: {printable(error)}.") from error
