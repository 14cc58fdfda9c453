"""What a quantize job survives, and what verify finds: the full counts of tests/quantize/test_kills.py and others."""

from __future__ import annotations

import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mixq.errors import ModelFileError, StorageError
from mixq.formats.mapped import MappedShard
from mixq.quantize.events import ShardDone, TensorDone
from mixq.quantize.job import Job, quantize
from mixq.quantize.verify import verify
from tests.accept.tables import markdown, write
from tests.checkpoints import write_tiny_mixtral
from tests.quantize import test_calibrate
from tests.quantize.disasters import (
    CHANGES,
    Contents,
    assert_honest,
    contents,
    ended,
    forked,
    random_kills,
    short_writes,
    survives,
    survives_death_at,
    write_source,
)
from tests.quantize.test_signals import HINT, signalled

pytestmark = pytest.mark.accept
SEED = 2026
SECONDS = 2.0
"""Within which Ctrl-C and SIGTERM end a job."""

Rows = dict[str, tuple[int, str]]
KINDS = 14


@pytest.fixture(scope="module")
def rows() -> Iterator[Rows]:
    """What was tried, how often, and what came of it; written once all has passed."""
    found: Rows = {}
    yield found
    if len(found) != KINDS:
        return
    how = (
        "A tiny Mixtral (0.24 MB quantized, 9 files) unless said otherwise, on Linux. After every death, failure or "
        "refusal the same call runs to the end, and every file must equal that of an undisturbed job. "
        f"Random places and times have seed {SEED}. Made by `make accept`."
    )
    table = markdown(["disturbance", "tries", "result"], [[kind, *row] for kind, row in found.items()])
    write("safety", "Interrupted quantize jobs", how, table)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source(tmp_path_factory.mktemp("safety") / "source")


@pytest.fixture(scope="module")
def expected(source: Path) -> Contents:
    quantize(source, source.parent / "expected")
    return contents(source.parent / "expected")


def test_random_kills(rows: Rows, source: Path, expected: Contents, tmp_path: Path) -> None:
    kills, died = random_kills(SEED, source, tmp_path / "timed"), 0
    while died < 200:
        died += survives(kills, source, tmp_path / "out", expected)
        shutil.rmtree(tmp_path / "out")
    rows["SIGKILL at a random time, and again while resuming"] = died, "all resumed, same bytes"


def test_death_before_every_change(rows: Rows, source: Path, expected: Contents, tmp_path: Path) -> None:
    step = 1
    while survives_death_at(step, source, tmp_path / f"out-{step}", expected):
        step += 1
    assert step - 1 == CHANGES
    rows["death before each change of the folder: every file opened, renamed, removed"] = CHANGES, "same bytes"


def test_death_before_every_change_with_a_calibration(rows: Rows, tmp_path: Path) -> None:
    source, settings = test_calibrate.write_model(tmp_path / "source"), {"calibrate": test_calibrate.TEXT}
    quantize(source, tmp_path / "expected", **settings)
    expected, step = contents(tmp_path / "expected"), 1
    while survives_death_at(step, source, tmp_path / f"out-{step}", expected, **settings):
        step += 1
    assert step - 1 > CHANGES
    rows["the same of a job with --calibrate, which keeps a state"] = step - 1, "same bytes"


def test_death_before_every_change_with_a_fitted_table(rows: Rows, source: Path, tmp_path: Path) -> None:
    quantize(source, tmp_path / "expected", table="fit")
    expected, step = contents(tmp_path / "expected"), 1
    while survives_death_at(step, source, tmp_path / f"out-{step}", expected, table="fit"):
        step += 1
    assert step - 1 > CHANGES
    rows["the same of a job with --table fit, which writes the table into its journal"] = step - 1, "same bytes"


def is_found(folder: Path) -> bool:
    try:
        return not verify(folder).ok
    except ModelFileError:
        return True


def test_flipped_bits_and_cut_files(rows: Rows, source: Path, expected: Contents, tmp_path: Path) -> None:
    folder, chance = tmp_path / "out", random.Random(SEED)
    quantize(source, folder)
    names = sorted(expected)
    missed = []
    for _ in range(1000):
        name = chance.choice(names)
        damaged, at = bytearray(expected[name]), chance.randrange(len(expected[name]))
        damaged[at] ^= 1 << chance.randrange(8)
        (folder / name).write_bytes(damaged)
        if not is_found(folder):
            missed.append((name, at, expected[name][at], damaged[at]))
        (folder / name).write_bytes(expected[name])
    assert not missed
    rows["one bit flipped in a finished folder, in each file alike"] = 1000, "mixq verify finds all"
    for _ in range(100):
        name = chance.choice(names)
        at = chance.randrange(len(expected[name]))
        (folder / name).write_bytes(expected[name][:at])
        if not is_found(folder):
            missed.append((name, at, 0, 0))
        (folder / name).write_bytes(expected[name])
    assert not missed
    assert verify(folder).ok
    rows["a file of a finished folder truncated"] = 100, "mixq verify finds all"


def command(source: Path, target: Path, **environment: str) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-m", "mixq", "quantize", str(source), str(target)]
    return subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
    )


def test_threads(rows: Rows, tmp_path: Path) -> None:
    write_tiny_mixtral(tmp_path / "source", hidden=512, ffn=1024, experts=2, vocab=512)
    for threads in ("1", "2", "8"):
        with command(tmp_path / "source", tmp_path / threads, OMP_NUM_THREADS=threads) as process:
            process.communicate()
        assert process.returncode == 0
    assert contents(tmp_path / "1") == contents(tmp_path / "2") == contents(tmp_path / "8")
    rows["1, 2 and 8 threads"] = 3, "same bytes"


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A layer of Mixtral 8x7B with six of its experts: 1.1 billion weights, 58.7 M in each matrix of an expert."""
    folder = tmp_path_factory.mktemp("large") / "source"
    write_tiny_mixtral(folder, hidden=4096, ffn=14336, layers=1, experts=6)
    return folder


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_signals(name: str, code: int, rows: Rows, large: Path, tmp_path: Path) -> None:
    chance, seconds, target = random.Random(SEED), [], tmp_path / "out"
    for _ in range(10):
        returned, said, taken = signalled(large, target, getattr(signal, name), chance.uniform(0, 1.5))
        assert (returned, HINT in said, "Traceback" in said) == (code, True, False)
        assert set(contents(target)) == {"job.json"}
        seconds.append(taken)
    figures = f"median {statistics.median(seconds):.2f} s, worst {max(seconds):.2f} s"
    print(name, figures)
    quantize(large, target)
    assert verify(target).ok
    assert max(seconds) < SECONDS
    rows[f"{name} to `mixq quantize` of matrices of Mixtral 8x7B's size"] = (
        10,
        f"exit code {code}, says how to go on; {figures}",
    )


def test_many_processes_on_one_target(rows: Rows, source: Path, expected: Contents, tmp_path: Path) -> None:
    refused = 0
    for number in range(20):
        target = tmp_path / f"out-{number}"
        codes = [ended(child) for child in [forked(lambda target=target: quantize(source, target)) for _ in range(4)]]
        assert 0 in codes
        assert set(codes) <= {0, 1}
        refused += codes.count(1)
        assert contents(target) == expected
    assert refused
    rows["four processes on one target at once"] = 20, f"one works, {refused} of 60 others refused; same bytes"


def test_full_disk(rows: Rows, source: Path, expected: Contents, tmp_path: Path) -> None:
    disk, chance = tmp_path / "disk", random.Random(SEED)
    disk.mkdir()
    size = 2 * sum(map(len, expected.values())) + (1 << 20)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(disk)], check=False)
    if mounted.returncode:
        pytest.skip("no small disk can be mounted here")
    try:
        for _ in range(20):
            until, target = chance.randrange(29), disk / "out"

            def work(until: int = until, target: Path = target) -> None:
                tensors = 0
                for event in Job(source, target).run():
                    tensors += isinstance(event, TensorDone)
                    if tensors == until + 1 and isinstance(event, TensorDone):
                        fill_up(disk / "another")

            assert ended(forked(work)) == StorageError.exit_code
            assert not list(target.glob("*.partial"))
            assert_honest(target, expected)
            (disk / "another").unlink()
            quantize(source, target)
            assert contents(target) == expected
            shutil.rmtree(target)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    rows["a disk that another program fills at a random tensor"] = 20, "exit code 5, nothing half written; same bytes"


def fill_up(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                pass


def test_every_read_that_fails(
    rows: Rows, source: Path, expected: Contents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensor, reads, failing = MappedShard.tensor, 0, 0

    def fail(shard: MappedShard, name: str) -> object:
        nonlocal reads
        reads += 1
        if reads == failing:
            raise StorageError("model.safetensors cannot be read: Input/output error.")
        return tensor(shard, name)

    monkeypatch.setattr(MappedShard, "tensor", fail)
    for failing in range(1, 30):
        reads, target = 0, tmp_path / f"out-{failing}"
        with pytest.raises(StorageError, match="Input/output error"):
            quantize(source, target)
        assert not list(target.glob("*.partial"))
        quantize(source, target)
        assert contents(target) == expected
    rows["a tensor of the source that cannot be read, each once"] = 29, "exit code 5; same bytes"


def test_a_source_that_is_cut_off(rows: Rows, expected: Contents, tmp_path: Path) -> None:
    source = write_source(tmp_path / "source")
    whole = (source / "model.safetensors").read_bytes()
    for shards in (1, 2):

        def work(shards: int = shards) -> None:
            for event in Job(source, tmp_path / f"out-{shards}").run():
                if isinstance(event, ShardDone) and event.number == shards:
                    os.truncate(source / "model.safetensors", 8192)

        assert ended(forked(work)) == -signal.SIGBUS
        (source / "model.safetensors").write_bytes(whole)
        assert quantize(source, tmp_path / f"out-{shards}").shards_done_before == shards
        assert contents(tmp_path / f"out-{shards}") == expected
    rows["a source that another program truncates while it is read"] = 2, "killed by the system (SIGBUS); same bytes"


def test_short_writes(rows: Rows, source: Path, expected: Contents, tmp_path: Path) -> None:
    with short_writes(tmp_path) as opened:
        for number in range(10):
            quantize(source, tmp_path / f"out-{number}")
            assert contents(tmp_path / f"out-{number}") == expected
    assert len(opened) == 130
    rows["writes that take only a part of their bytes"] = 10, "same bytes"
