"""What can happen to a quantize job: killed at a random time or at a given step, and disks that fail.

Everything happens to a child made by os.fork from a process that has imported mixq already, so that hundreds of deaths
take minutes. A child never returns into the test.
"""

from __future__ import annotations

import builtins
import faulthandler
import io
import os
import random
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mixq.errors import MixqError, ModelFileError
from mixq.formats.folder import ModelFolder
from mixq.quantize.events import ShardDone
from mixq.quantize.job import Job, quantize
from mixq.quantize.verify import verify
from tests.checkpoints import write_tiny_mixtral

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

Contents = dict[str, bytes]
_CHANGING = ("os.rename", "os.remove", "os.mkdir", "os.truncate")
"""Audit events (see Python's audit events table) of calls that change a folder; so does `open` for writing."""

CHANGES = 33
"""Changes that a job of `write_source`'s checkpoint makes: the folder; the lock, and its removal; 13 files with a
partial and a rename each; after each of three shards the removal of a partial, gone by then; the journal's removal."""


def contents(folder: Path) -> Contents:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def write_source(path: Path, seed: int = 0) -> Path:
    """A checkpoint that gives a folder of 0.24 MB in three shards."""
    write_tiny_mixtral(path, hidden=128, ffn=128, experts=2, seed=seed)
    return path


def is_loadable(folder: Path) -> bool:
    try:
        ModelFolder.open(folder)
    except ModelFileError:
        return False
    return True


def interrupted(source: Path, target: Path) -> Path:
    """Leave a job with one finished shard."""
    run = Job(source, target).run()
    while not isinstance(next(run), ShardDone):
        pass
    run.close()  # type: ignore[attr-defined]
    return target


def forked(work: Callable[[], object]) -> int:
    """Run `work` in a child and return the child's process id; it exits with 0, or with the error's exit code."""
    child = os.fork()
    if child:
        return child
    code = 70
    faulthandler.disable()  # pytest's; of a death that is meant to be
    try:
        work()
        code = 0
    except MixqError as error:
        code = error.exit_code
    finally:
        os._exit(code)


def ended(child: int) -> int:
    """Wait for a child; return its exit code, or the signal that killed it as a negative number."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_after(seconds: float, work: Callable[[], object]) -> bool:
    """Run `work` in a child that gets SIGKILL after some time; return whether that found it at work."""
    child = forked(work)
    descriptor = os.pidfd_open(child) if hasattr(os, "pidfd_open") else None
    if descriptor is None:
        time.sleep(seconds)
    else:
        select.select([descriptor], [], [], seconds)  # shorter where the child ends first
        os.close(descriptor)
    os.kill(child, signal.SIGKILL)
    code = ended(child)
    assert code in (0, -signal.SIGKILL), f"the child ended with {code}"
    return code != 0


def die_at(step: int, folder: Path) -> None:
    """Have this process die just before its `step`-th call that opens for writing, renames, removes or makes something.

    Only what lies in `folder`, or is it, counts. The moment before a call is the one after the call before it.
    """
    counted = 0

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal counted
        if event == "open":
            name, _, flags = arguments
            changes = isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        else:
            name, changes = arguments[0] if arguments else None, event in _CHANGING
        if changes and isinstance(name, str | os.PathLike) and str(name).startswith(str(folder)):
            counted += 1
            if counted == step:
                os._exit(9)

    sys.addaudithook(hook)


def killed_at(step: int, source: Path, target: Path, **settings: Any) -> bool:
    """Quantize in a child that dies at its `step`-th change of the folder; return whether it came to that."""

    def work() -> None:
        die_at(step, target)
        quantize(source, target, **settings)

    code = ended(forked(work))
    assert code in (0, 9), f"the child ended with {code}"
    return code == 9


def assert_honest(target: Path, expected: Contents) -> None:
    """A folder that a killed job left is either refused by reader and verifier, or whole."""
    if not target.is_dir():
        return
    try:
        ModelFolder.open(target)
    except ModelFileError:
        pass
    else:
        there = contents(target)
        assert all(there.get(name) == content for name, content in expected.items())
    try:
        report = verify(target)
    except ModelFileError:
        return
    assert report.ok, report.problems


def survives(kills: Iterator[float], source: Path, target: Path, expected: Contents) -> int:
    """Kill a job at random times until one finds it done, at most three times; finish it; return how often it died."""
    died = 0
    for seconds in (next(kills), next(kills), next(kills)):
        if not killed_after(seconds, lambda: quantize(source, target)):
            break
        died += 1
        assert_honest(target, expected)
    assert ended(forked(lambda: quantize(source, target))) == 0
    assert contents(target) == expected
    return died


def survives_death_at(step: int, source: Path, target: Path, expected: Contents, **settings: Any) -> bool:
    """Kill a job before a change of its folder, kill what goes on with it early, finish it; whether it died at all."""
    died = killed_at(step, source, target, **settings)
    assert_honest(target, expected)
    if killed_at(1 + step % 7, source, target, **settings):
        assert_honest(target, expected)
    assert ended(forked(lambda: quantize(source, target, **settings))) == 0
    assert contents(target) == expected, f"killed at step {step}"
    return died


def random_kills(seed: int, source: Path, scratch: Path) -> Iterator[float]:
    """Yield random times within the time that a job takes here."""
    print(f"seed {seed}")
    started = time.perf_counter()
    assert ended(forked(lambda: quantize(source, scratch))) == 0
    longest = time.perf_counter() - started
    chance = random.Random(seed)
    while True:
        yield chance.uniform(0, longest)


class ShortWrites(io.FileIO):
    """A file that takes only some bytes of each write, as systems may."""

    chance = random.Random(3)

    def write(self, data: object, /) -> int:
        view = memoryview(data).cast("B")  # type: ignore[call-overload]
        return super().write(view[: self.chance.randint(1, 5000)])


@contextmanager
def short_writes(folder: Path) -> Iterator[list[Path]]:
    """Let every file below `folder` that is opened for writing take its bytes in pieces; yields those files."""
    path_open, builtin_open, opened = Path.open, builtins.open, list[Path]()

    def short(path: object, mode: str) -> object | None:
        if "w" not in mode or not isinstance(path, Path) or folder not in path.parents:
            return None
        opened.append(path)
        raw = ShortWrites(path, mode.replace("b", ""))
        return io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)

    def short_path_open(path: Path, mode: str = "r", *arguments: Any, **options: Any) -> object:
        return short(path, mode) or path_open(path, mode, *arguments, **options)

    def short_builtin_open(path: object, mode: str = "r", *arguments: Any, **options: Any) -> object:
        return short(path, mode) or builtin_open(path, mode, *arguments, **options)  # type: ignore[call-overload]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Path, "open", short_path_open)
        patched.setattr(builtins, "open", short_builtin_open)
        yield opened
