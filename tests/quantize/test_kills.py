"""A job killed at random times and before every change it makes to its folder; `make accept` does it 200 times."""

from __future__ import annotations

import os
import signal
import stat
from pathlib import Path

import pytest
import torch

from mixq.errors import StorageError
from mixq.formats import lock
from mixq.formats.mapped import MappedShard
from mixq.quantize.events import ShardDone, TensorDone
from mixq.quantize.job import Job, quantize
from mixq.quantize.verify import verify
from tests.quantize.disasters import (
    CHANGES,
    Contents,
    assert_honest,
    contents,
    ended,
    forked,
    killed_at,
    needs_fork,
    random_kills,
    short_writes,
    survives,
    survives_death_at,
    write_source,
)

KILLS, SEED = 12, 20


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source(tmp_path_factory.mktemp("kills") / "source")


@pytest.fixture(scope="module")
def expected(source: Path) -> Contents:
    quantize(source, source.parent / "expected")
    return contents(source.parent / "expected")


@needs_fork
def test_killed_at_random_times(source: Path, expected: Contents, tmp_path: Path) -> None:
    kills = random_kills(SEED, source, tmp_path / "timed")
    died, number = 0, 0
    while died < KILLS:
        number += 1
        died += survives(kills, source, tmp_path / f"out-{number}", expected)
        assert number < 10 * KILLS, "jobs end before they are killed"


@needs_fork
def test_killed_before_changes_of_the_folder(source: Path, expected: Contents, tmp_path: Path) -> None:
    for step in range(1, CHANGES + 1, 6):  # every one of them: `make accept`
        assert survives_death_at(step, source, tmp_path / f"out-{step}", expected)
    assert not killed_at(CHANGES + 1, source, tmp_path / "out")
    assert contents(tmp_path / "out") == expected


@needs_fork
def test_nothing_half_written_stays_where_the_source_changes_meanwhile(expected: Contents, tmp_path: Path) -> None:
    source, target = write_source(tmp_path / "source"), tmp_path / "out"
    tokenizer = source / "tokenizer.model"
    first = tokenizer.read_bytes()
    quantize(source, target)
    step, died = 0, True
    while died:  # a changed side file on its way into a finished folder, and the source changes back
        step += 1
        tokenizer.write_bytes(b"another tokenizer")
        died = killed_at(step, source, target)
        tokenizer.write_bytes(first)
        quantize(source, target)
        assert contents(target) == expected, f"killed at step {step}"
    assert step == 7  # the lock, two files and their renames, the lock's removal
    assert killed_at(21, source, tmp_path / "lost")  # with half a tokenizer.model
    assert (tmp_path / "lost" / "tokenizer.model.partial").exists()
    tokenizer.unlink()
    quantize(source, tmp_path / "lost")
    assert verify(tmp_path / "lost").ok


def test_every_file_is_synced_before_it_gets_its_name_and_the_folder_after(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or else a power cut could leave an empty file under the name of a whole one."""
    happened: list[object] = []
    fsync, replace = os.fsync, Path.replace

    def state(status: os.stat_result) -> tuple[int, int]:
        return status.st_ino, 0 if stat.S_ISDIR(status.st_mode) else status.st_mtime_ns

    def noted_fsync(handle: int) -> None:
        happened.append(state(os.fstat(handle)))
        fsync(handle)

    def noted_replace(path: Path, other: Path) -> Path:
        happened.append((state(path.stat()), other.name))
        return replace(path, other)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    quantize(source, tmp_path / "out")
    folder = state((tmp_path / "out").stat())
    threes = [happened[i : i + 3] for i in range(0, len(happened), 3)]
    names = []
    for file_synced, renamed, folder_synced in threes:
        assert isinstance(renamed, tuple)
        names.append(renamed[1])
        assert (file_synced, folder_synced) == (renamed[0], folder)
    assert len(names) == 13
    assert (names[0], names[-2:]) == ("job.json", ["mixq.json", "config.json"])


@pytest.mark.parametrize("call", ["fsync", "posix_fallocate", "replace"])
def test_interrupted_in_every_call_that_takes_a_while(
    call: str, source: Path, expected: Contents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = Path if call == "replace" else os
    if not hasattr(owner, call):
        pytest.skip(f"no {call} here")
    real, calls, failing, target = getattr(owner, call), 0, 0, tmp_path

    def interrupted(*arguments: object) -> object:
        nonlocal calls
        calls += 1
        if calls == failing:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(owner, call, interrupted)
    while failing <= calls:
        calls, failing, target = 0, failing + 1, tmp_path / f"out-{failing}"
        try:
            quantize(source, target)
        except KeyboardInterrupt:
            assert not {name for name in contents(target) if name.endswith((".partial", ".lock"))}
            assert_honest(target, expected)
            quantize(source, target)
        assert contents(target) == expected, f"{call} number {failing}"
    assert failing > 3


def test_short_writes(source: Path, expected: Contents, tmp_path: Path) -> None:
    with short_writes(tmp_path) as opened:
        quantize(source, tmp_path / "out")
    assert len(opened) == 13
    assert contents(tmp_path / "out") == expected


@needs_fork
def test_a_limit_on_the_size_of_files(source: Path, expected: Contents, tmp_path: Path) -> None:
    import resource

    largest = max(len(content) for content in expected.values())

    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest - 1, largest - 1))
        quantize(source, tmp_path / "out")

    assert ended(forked(limited)) == StorageError.exit_code
    assert not list((tmp_path / "out").glob("*.partial"))
    quantize(source, tmp_path / "out")
    assert contents(tmp_path / "out") == expected


@pytest.mark.parametrize("failing", [1, 15, 29])
def test_a_source_that_cannot_be_read(
    failing: int, source: Path, expected: Contents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = 0
    tensor = MappedShard.tensor

    def fail(shard: MappedShard, name: str) -> torch.Tensor:
        nonlocal reads
        reads += 1
        if reads == failing:
            raise StorageError("model.safetensors cannot be read: Input/output error.")
        return tensor(shard, name)

    job = Job(source, tmp_path / "out")
    with monkeypatch.context() as patched:
        patched.setattr(MappedShard, "tensor", fail)
        with pytest.raises(StorageError, match="Input/output error"):
            list(job.run())
    assert not {name for name in contents(tmp_path / "out") if name.endswith(".partial")}
    assert_honest(tmp_path / "out", expected)
    quantize(source, tmp_path / "out")
    assert contents(tmp_path / "out") == expected


@needs_fork
def test_a_source_cut_off_under_the_job(expected: Contents, tmp_path: Path) -> None:
    """The system kills a process that reads behind the end of a mapped file; the folder survives that too."""
    source = write_source(tmp_path / "source")
    file = source / "model.safetensors"
    whole = file.read_bytes()

    def cut_off() -> None:
        for event in Job(source, tmp_path / "out").run():
            if isinstance(event, ShardDone):
                os.truncate(file, 8192)

    assert ended(forked(cut_off)) == -signal.SIGBUS
    file.write_bytes(whole)
    assert quantize(source, tmp_path / "out").shards_done_before == 1
    assert contents(tmp_path / "out") == expected


@needs_fork
def test_another_process_on_the_same_target(source: Path, expected: Contents, tmp_path: Path) -> None:
    job = Job(source, tmp_path / "out").run()
    while not isinstance(next(job), TensorDone):
        pass
    before = contents(tmp_path / "out")
    assert ended(forked(lambda: quantize(source, tmp_path / "out"))) == 1
    assert contents(tmp_path / "out") == before
    assert lock.FILE_NAME in before
    list(job)
    assert contents(tmp_path / "out") == expected


@needs_fork
@pytest.mark.parametrize("threads", [2, 8])
def test_the_number_of_threads_does_not_show(threads: int, source: Path, expected: Contents, tmp_path: Path) -> None:
    def work() -> None:
        torch.set_num_threads(threads)
        quantize(source, tmp_path / "out")

    assert ended(forked(work)) == 0
    assert contents(tmp_path / "out") == expected
