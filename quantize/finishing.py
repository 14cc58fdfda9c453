"""The end of a job: writes all files of the folder but the shards, config.json last; updates finished folders.

Contract: `finish` depends only on plan and journal. `finished_before` writes only the tokenizer and other side files
that changed in the source.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, replace

from mixq.errors import UsageError, printable
from mixq.formats.atomic import atomic_write_bytes
from mixq.formats.manifest import Manifest
from mixq.formats.shards import INDEX
from mixq.quantize import journal as journals
from mixq.quantize.job_plan import JobPlan, json_bytes
from mixq.quantize.journal import Journal, LinearError
from mixq.quantize.layout import all_items, index_of
from mixq.quantize.sources.place import reading
from mixq.quantize.sources.source import CONFIG, SIDE_FILES
from mixq.quantize.target import remove


def finish(plan: JobPlan, journal: Journal) -> dict[str, LinearError]:
    """Write all files but the shards, config.json last; remove the journal; return the errors by layer name."""
    contents = dict(plan.side_files)
    contents[INDEX] = json_bytes(index_of(plan.shards))
    contents[CONFIG] = json_bytes(plan.config(journal.table or plan.table))
    finished = {shard.file: journal.shards[shard.file] for shard in plan.shards}
    errors = {linear: error for shard in finished.values() for linear, error in shard.errors.items()}
    manifest = Manifest(
        source=journal.source,
        settings=journal.settings,
        shards={file: shard.sha256 for file, shard in finished.items()},
        files={name: hashlib.sha256(content).hexdigest() for name, content in contents.items()},
        errors={linear: error.relative_squared_error for linear, error in errors.items()},
        group_errors={linear: error.group_error for linear, error in errors.items()},
        sizes=[asdict(row) for row in plan.sizes.rows],
        few_tokens={expert: tokens for shard in finished.values() for expert, tokens in shard.few_tokens.items()},
    )
    config = contents.pop(CONFIG)
    for name in SIDE_FILES:
        if name not in plan.side_files:  # an interrupted run copied it, and the source no longer has it
            remove(plan.target / name)
    for name, content in contents.items():
        atomic_write_bytes(plan.target / name, content)
    manifest.write(plan.target)
    atomic_write_bytes(plan.target / CONFIG, config)
    plan.folder.remove_states()
    remove(plan.target / journals.FILE_NAME)
    return errors


def finished_before(plan: JobPlan) -> tuple[dict[str, LinearError], list[str]]:
    """Update the side files of a folder that the same job has finished.

    Returns:
        the errors by layer name, and a notice for each file that was written.
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
    """Write the side files that differ from the source's, mixq.json last, and return a notice for each.

    If the process is killed in between, the next run finds the same differences. Nothing is removed from a finished
    folder.

    Raises:
        UsageError: the source no longer has a side file of the finished folder.
    """
    contents = plan.side_files
    own = {name: manifest.files[name] for name in (INDEX, CONFIG) if name in manifest.files}
    lost = [name for name in manifest.files if name not in contents and name not in own]
    if lost:
        raise UsageError(
            f"{printable(plan.target)} contains {printable(lost[0])}, which is no longer in the source.",
            hint="Restore the file in the source, or choose another target folder.",
        )
    files = {**{name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}, **own}
    notices = []
    for name, content in contents.items():
        path = plan.target / name
        with reading(path):
            same = path.is_file() and path.read_bytes() == content
        if not same:
            atomic_write_bytes(path, content)
            notices.append(
                f"{name} was missing or differed from the source, and was written again. The weights are unchanged."
            )
    if files != manifest.files:
        changed = [name for name in contents if files[name] != manifest.files.get(name)]
        replace(manifest, files=files).write(plan.target)
        notices.append(f"mixq.json has the new sha256 of {printable(', '.join(changed))}.")
    return notices
