"""The model store: one folder per model name, and the state of each.

Contract: `entries` examines every folder in the store, `find` one of them, by config.json, mixq.json, job.json and the
first bytes of each shard: it checks that all files are there, not every byte (`mixq verify` does). `remove` removes a
folder only if a quantize job wrote it and no process is working on it. Nothing here imports torch, so that `mixq list`
and shell completion are fast.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mixq.errors import MixqError, ModelFileError, StorageError, UsageError, did_you_mean, printable
from mixq.formats.json_file import parse_json_object, read_json_object
from mixq.formats.lock import FILE_NAME as LOCK
from mixq.formats.lock import is_locked
from mixq.formats.manifest import FILE_NAME as MANIFEST
from mixq.formats.manifest import Manifest
from mixq.system import paths

CONFIG, JOURNAL = "config.json", "job.json"
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
MAX_HEADER_BYTES = 8 << 20
REMOVING = ".removing-"
"""Prefix of a folder's name while it is removed; the next `remove` deletes what a killed process has left."""

NAME = re.compile(r"[A-Za-z0-9_][\w.+-]{0,126}[\w+-]|[A-Za-z0-9_]", re.ASCII)
"""Allowed names of models: no path separator, no dot at the start, no dot at the end (which Windows drops)."""

RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))}
"""Names of devices on Windows, with any extension."""

State = Literal["ready", "unfinished", "running", "damaged"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One folder of the store."""

    name: str
    path: Path
    # `ready` can be loaded; `unfinished` is an interrupted job, `running` a job in progress; `damaged` is anything
    # else, with the reason in `problem`
    state: State
    problem: str = ""
    made_by_mixq: bool = False  # a quantize job wrote it, at least in part; other folders are shown and never removed
    link: Path | None = None  # target of a symlink; None for a folder
    # nbytes, files: of all its files
    nbytes: int = 0
    files: int = 0
    modified: float = 0.0  # seconds since 1970, of the newest file
    config: Mapping[str, Any] = field(default_factory=dict)  # config.json, or {}
    # source, settings: those of mixq.json or job.json, or {}
    source: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    # shards_done, shards: of an unfinished job; `shards` is None before the first is finished
    shards_done: int = 0
    shards: int | None = None

    @property
    def from_hub(self) -> bool:
        """Whether its source is a repository, which `mixq pull` can read again."""
        return isinstance(self.source.get("revision"), str)

    @property
    def scheme(self) -> str:
        """The format of the job, else config.json's quantization method, else the dtype."""
        made = self.settings.get("format")
        if isinstance(made, str):
            return printable(made, 20)
        quantization = self.config.get("quantization_config")
        method = quantization.get("quant_method") if isinstance(quantization, dict) else None
        dtype = self.config.get("dtype", self.config.get("torch_dtype", ""))
        return printable(method or dtype, 20)

    @property
    def next_step(self) -> str | None:
        """The hint for an entry that cannot be loaded; None if it can."""
        if self.state == "ready":
            return None
        if self.state == "running":
            return "wait for the job, or stop it with Ctrl-C; the same command resumes it"
        if self.state == "unfinished":
            again = "the same mixq quantize or mixq pull command again"
            return f"mixq pull {self.name}" if self.from_hub else again
        return f"mixq rm {self.name}" if self.made_by_mixq or self.link else f"see {printable(self.path)}"

    def as_dict(self) -> dict[str, Any]:
        """Return it for --json."""
        return {
            "name": self.name,
            "path": str(self.path),
            "state": self.state,
            "problem": self.problem or None,
            "next": self.next_step,
            "made_by_mixq": self.made_by_mixq,
            "link": None if self.link is None else str(self.link),
            "bytes": self.nbytes,
            "scheme": self.scheme or None,
            "architecture": (self.config.get("architectures") or [None])[0],
            "layers": self.config.get("num_hidden_layers"),
            "experts": self.config.get("num_local_experts", 0) if self.config else None,
            "experts_per_token": self.config.get("num_experts_per_tok", 0) if self.config else None,
            "max_context": self.config.get("max_position_embeddings"),
            "source": dict(self.source) or None,
            "settings": dict(self.settings) or None,
            "shards_done": self.shards_done,
            "shards": self.shards,
            "modified": self.modified,
        }


def names() -> list[str]:
    """Return the names in the store, sorted; [] if there is no store. Opens nothing."""
    try:
        with os.scandir(paths.store()) as found:
            return sorted(entry.name for entry in found if not entry.name.startswith(".") and entry.is_dir())
    except OSError:
        return []


def entries() -> list[Entry]:
    """Return all entries of the store, sorted by name, including broken symlinks.

    Raises:
        StorageError: the store exists and cannot be read.
    """
    try:
        with os.scandir(paths.store()) as found:
            listed = [e.name for e in found if not e.name.startswith(".") and (e.is_dir() or e.is_symlink())]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StorageError(f"{printable(paths.store())} cannot be read: {printable(error.strerror)}.") from error
    return [look(paths.store() / name) for name in sorted(listed)]


def find(name: str) -> Entry:
    """Return the entry of a name.

    Raises:
        UsageError: not a possible name in the store, such as a path.
        ModelFileError: the model is not in the store.
    """
    path = paths.store() / name
    if not name or Path(name).name != name or name.startswith("."):
        raise UsageError(
            f"{printable(name)!r} is not the name of a model in the store.", hint="`mixq list` prints the names."
        )
    if not path.is_symlink() and not path.is_dir():
        raise ModelFileError(
            f"The store has no model {printable(name)!r}." + did_you_mean(name, names()),
            hint="`mixq list` prints the models.",
        )
    return look(path)


def check_name(name: str) -> str:
    """Return a name for a new model; UsageError if it is not safe on every system."""
    if not NAME.fullmatch(name) or name.lower().split(".", 1)[0] in RESERVED:
        raise UsageError(
            f"{printable(name)!r} cannot be the name of a model.",
            hint="Use letters, digits and . _ + -, starting with a letter or digit; names of Windows devices (con, "
            "nul) are not allowed.",
        )
    return name


def look(path: Path) -> Entry:
    """Return the entry of a folder in the store."""
    link = None
    if path.is_symlink():
        link = Path(os.readlink(path))
        if not path.is_dir():
            return Entry(path.name, path, "damaged", "it is a broken symlink", link=link)
    try:
        nbytes, files, modified = _sizes(path)
        found = _state(path)
    except OSError as error:
        return Entry(path.name, path, "damaged", f"it cannot be read: {printable(error.strerror)}", link=link)
    return Entry(path.name, path, link=link, nbytes=nbytes, files=files, modified=modified, **found)


def _sizes(path: Path) -> tuple[int, int, float]:
    """Return bytes, number and newest time of a folder's files, without subfolders, which jobs do not create."""
    status = [entry.stat() for entry in os.scandir(path) if entry.name != LOCK and entry.is_file()]
    newest = max((each.st_mtime for each in status), default=path.stat().st_mtime)
    return sum(each.st_size for each in status), len(status), newest


def _state(path: Path) -> dict[str, Any]:
    """Return the fields of `Entry` about the folder's files."""
    present = set(os.listdir(path))
    begun = JOURNAL in present or not present - {LOCK, f"{JOURNAL}.partial"}
    running = LOCK in present and is_locked(path)
    made = {"made_by_mixq": begun or running or MANIFEST in present}
    try:
        config = read_json_object(path / CONFIG) if CONFIG in present else {}
        if begun or running:
            state = "running" if running else "unfinished"
            return {"state": state, "config": config, **made, **_journal(path, present)}
        if MANIFEST in present:
            manifest = Manifest.read(path)
            known = {"config": config, "source": manifest.source, "settings": manifest.settings}
            problem = _first_problem(path, [CONFIG, *manifest.files], list(manifest.shards))
        else:
            known = {"config": config}
            problem = _first_problem(path, [CONFIG], _indexed(path, present))
    except (ModelFileError, StorageError) as error:
        return {"state": "damaged", "problem": error.message.rstrip("."), **made}
    return {"state": "damaged" if problem else "ready", "problem": problem, **made, **known}


def _journal(path: Path, present: set[str]) -> dict[str, Any]:
    """Return the content of job.json; a job killed before it wrote one has done nothing."""
    if JOURNAL not in present:
        return {}
    raw = read_json_object(path / JOURNAL)
    parts = {key: raw.get(key) for key in ("source", "settings", "shards")}
    if not all(isinstance(part, dict) for part in parts.values()):
        raise ModelFileError(f"{JOURNAL} is damaged, or was written by another version of mixq.")
    totals = [match[1] for name in present if (match := re.fullmatch(r"model-\d+-of-(\d+)\.safetensors", name))]
    done = len(parts.pop("shards") or {})
    return {**parts, "shards_done": done, "shards": int(totals[0]) if totals else None}


def _indexed(path: Path, present: set[str]) -> list[str]:
    """Return the shards of a folder written by another program."""
    if INDEX not in present:
        return [SINGLE]
    weight_map = read_json_object(path / INDEX).get("weight_map")
    if not isinstance(weight_map, dict):
        raise ModelFileError(f"{INDEX} has no weight_map.")
    return sorted({str(name) for name in weight_map.values()})


def _first_problem(path: Path, files: Sequence[str], shards: Sequence[str]) -> str:
    """Return the problem of the first missing or truncated file, or an empty string."""
    for name in (*files, *shards):
        if Path(name).name != name or not (path / name).is_file():
            return f"{printable(name)} is missing"
    for name in shards:
        if not _is_whole(path / name):
            return f"{printable(name)} is truncated or damaged"
    return ""


def _is_whole(shard: Path) -> bool:
    """Whether a safetensors file has the length that its header describes."""
    size = shard.stat().st_size
    with shard.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
            return False
        header = parse_json_object(file.read(length), shard.name)
    ends = [entry.get("data_offsets") for entry in header.values() if isinstance(entry, dict)]
    bounds = [end[1] for end in ends if isinstance(end, list) and len(end) == 2 and isinstance(end[1], int)]
    return 8 + length + max(bounds, default=0) == size


def remove(entry: Entry) -> None:
    """Remove an entry from the store; of a symlink, only the symlink.

    Raises:
        UsageError: the folder was not written by a quantize job.
        MixqError: a quantize job is working on it.
        StorageError: it cannot be removed.
    """
    check_removable(entry)
    try:
        for left_over in paths.store().glob(f"{REMOVING}*"):
            if left_over.is_dir() and not left_over.is_symlink():
                shutil.rmtree(left_over)
        if entry.link is not None:
            entry.path.unlink()
            return
        doomed = entry.path.with_name(f"{REMOVING}{os.getpid()}-{entry.name}")
        entry.path.rename(doomed)  # if the process is killed after this, the rest is not taken for a model
        shutil.rmtree(doomed)
    except OSError as error:
        raise StorageError(f"{printable(error.filename)} cannot be removed: {printable(error.strerror)}.") from error


def check_removable(entry: Entry) -> None:
    """Raise the errors of `remove`, without removing anything."""
    if entry.link is not None:
        return
    if not stat.S_ISDIR(entry.path.lstat().st_mode) or not entry.made_by_mixq:
        raise UsageError(
            f"{printable(entry.name)} was not written by mixq.",
            hint=f"If you do not need it, delete {printable(entry.path)} yourself.",
        )
    if is_locked(entry.path):
        raise MixqError(
            f"a quantize job is working on {printable(entry.name)}.", hint="Stop it first (Ctrl-C), or wait for it."
        )


def others(entry: Entry) -> list[str]:
    """Return the files and folders of an entry that mixq.json does not list."""
    if entry.link is not None or entry.state == "damaged" or not (entry.path / MANIFEST).is_file():
        return []
    manifest = Manifest.read(entry.path)
    return sorted(set(os.listdir(entry.path)) - {MANIFEST, LOCK, *manifest.files, *manifest.shards})
