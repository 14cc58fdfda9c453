"""`mixq bench --save` and `--compare`: what a line carries, what a difference is, and files that are none."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from mixq.measure.speed import bandwidth, record
from mixq.measure.speed.compare import compare, read
from mixq.models.presets import PRESETS
from tests.cli.conftest import RunCli
from tests.measure.speed.test_synthetic import TINY

SHORT = ("bench", "--synthetic", "tiny", "-p", "8", "-n", "4", "-r", "2", "--threads", "1")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny preset, and a buffer that is quick to read."""
    monkeypatch.setitem(PRESETS, "tiny", TINY)
    monkeypatch.setattr(bandwidth.Bandwidth.__init__, "__kwdefaults__", {"largest": 8 << 20})


def line(*samples: float, **facts: Any) -> str:
    content = {"model_filename": "m", "n_prompt": 0, "n_gen": 128, "n_depth": 0, "samples_ts": list(samples)}
    return json.dumps({**content, **facts}) + "\n"


def files(folder: Path, old: str, new: str) -> tuple[Path, Path]:
    (folder / "old.jsonl").write_text(old)
    (folder / "new.jsonl").write_text(new)
    return folder / "old.jsonl", folder / "new.jsonl"


def test_a_saved_line_says_what_it_depends_on(cli: RunCli, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "bench.jsonl"
    for _ in range(2):
        outcome = cli(*SHORT, "--save", path)
        assert outcome.code == 0, outcome.err
        assert "Added to" in outcome.err
    lines = [json.loads(text) for text in path.read_text().splitlines()]
    assert [found["test"] for found in lines] == ["pp8", "tg4", "pp8", "tg4"]
    first = lines[0]
    assert first["build_commit"] == record.commit()
    assert first["test_time"].startswith("20")
    assert first["cpu_info"]
    assert first["kernels"]["cpu"]
    assert first["plan"] == {
        "device": "cpu",
        "weights": "in memory",
        "vram_bytes": None,
        "ram_bytes": None,
        "slots": None,
        "threads": 1,
        "kv": "bf16",
        "miss": None,
        "cache_policy": None,
        "context": 8,
        "routing": "model",
    }
    compared = cli("bench", "--compare", path, path, "--json")
    assert compared.code == 0, compared.err
    assert [row["test"] for row in json.loads(compared.out)["tests"]] == ["pp8", "tg4"]


def test_a_line_that_was_cut_off_is_not_continued(tmp_path: Path) -> None:
    path = tmp_path / "bench.jsonl"
    path.write_bytes(b'{"cut')
    record.append(path, [{"a": 1}])
    assert path.read_bytes() == b'{"cut\n{"a": 1}\n'


@pytest.mark.parametrize(
    ("old", "new", "verdict"),
    [
        ((100, 101, 99, 100), (121, 120, 119, 120), "faster"),
        ((100, 101, 99, 100), (81, 80, 79, 80), "slower"),
        ((100, 80, 120, 95), (104, 90, 120, 100), "no difference seen"),
        ((100,), (120,), "one run: no interval"),
        ((100, 100), (100, 100), "no difference seen"),
    ],
)
def test_verdicts(tmp_path: Path, old: tuple[float, ...], new: tuple[float, ...], verdict: str) -> None:
    before, after = files(tmp_path, line(*old), line(*new))
    (found,) = compare(read(before), read(after))
    assert found.verdict == verdict
    assert found.ratio == pytest.approx((sum(new) / len(new)) / (sum(old) / len(old)))
    if found.low is not None and found.high is not None:
        assert found.low <= found.ratio <= found.high


def test_the_interval_is_welchs(tmp_path: Path) -> None:
    # means 100 and 110, variances 4 and 16 of 5 samples each: standard error of the ratio's logarithm 0.018..., 5.9 dof
    before, after = files(tmp_path, line(98, 99, 100, 101, 102), line(104, 107, 110, 113, 116))
    (found,) = compare(read(before), read(after))
    spread = (2.5 / 5 / 100**2 + 22.5 / 5 / 110**2) ** 0.5
    assert found.high is not None
    assert found.high / found.ratio == pytest.approx(2.718281828 ** (2.571 * spread), rel=1e-3)


def test_what_else_differs_is_named(cli: RunCli, tmp_path: Path) -> None:
    before, after = files(
        tmp_path,
        line(100, 101, cpu_info="A", plan={"threads": 2, "vram_bytes": None}),
        line(130, 131, cpu_info="B", plan={"threads": 4, "vram_bytes": None}),
    )
    outcome = cli("bench", "--compare", before, after)
    assert outcome.code == 0
    assert "faster" in outcome.out
    assert "cpu_info: A, then B" in outcome.err
    assert "plan.threads: 2, then 4" in outcome.err


def test_a_run_that_other_programs_disturbed_is_marked(cli: RunCli, tmp_path: Path) -> None:
    before, after = files(tmp_path, line(100, 101, load=0.1), line(80, 81, load=0.34))
    outcome = cli("bench", "--compare", before, after, "--json")
    assert "tg128, new, was measured while other programs used 34% of the processor" in outcome.err
    assert "tg128, old" not in outcome.err
    (row,) = json.loads(outcome.out)["tests"]
    assert (row["old_load"], row["new_load"]) == (0.1, 0.34)
    for strange in (True, "much", 2, None):
        before, after = files(tmp_path, line(100, load=strange), line(80))
        assert "other programs" not in cli("bench", "--compare", before, after).err


def test_a_fall_ends_with_1(cli: RunCli, tmp_path: Path) -> None:
    before, after = files(tmp_path, line(100, 101, 99), line(80, 81, 79))
    assert cli("bench", "--compare", before, after).code == 0
    outcome = cli("bench", "--compare", before, after, "--fail-below", "0.95")
    assert outcome.code == 1
    assert "tg128 runs at 0.80 times" in outcome.err
    assert cli("bench", "--compare", after, before, "--fail-below", "0.95").code == 0
    before, after = files(tmp_path, line(10.5), line(5))
    assert cli("bench", "--compare", before, after, "--fail-below", "0.9").code == 1


def test_llama_bench_lines_are_read(tmp_path: Path) -> None:
    theirs = {
        "build_commit": "abc",
        "cpu_info": "A",
        "model_filename": "m",
        "n_prompt": 512,
        "n_gen": 0,
        "n_depth": 0,
        "avg_ns": 5,
        "samples_ns": [1, 2],
        "samples_ts": [99.5, 100.5],
    }
    before, _ = files(tmp_path, json.dumps(theirs), "")
    (found,) = read(before)
    assert (found.test, found.mean) == ("pp512", 100)


@pytest.mark.parametrize(
    ("content", "code", "words"),
    [
        ("", 3, "has no results"),
        ("{\n", 3, "line 1 is not JSON"),
        ("[]\n", 3, "line 1 must be a JSON object"),
        (line(100) + line(), 3, "line 2: samples_ts"),
        (line(0), 3, "samples_ts"),
        (line(-1.0), 3, "samples_ts"),
        (line(float("nan")), 3, "is not JSON"),
        (line(float("inf")), 3, "is not JSON"),
        (line(1e300), 3, "samples_ts"),
        (line(1e-200, 1e-200), 3, "samples_ts"),
        (line(100, build_commit=float("nan")), 3, "is not JSON"),
        (line(100, n_gen=-1), 3, "n_gen is -1; it must be a whole number from 0"),
        (line(100, n_gen=0), 3, "neither n_prompt nor n_gen"),
        (line(100, model_filename=3), 3, "model_filename"),
        ("x" * ((1 << 20) + 2), 3, "too long"),
        (line(100, model_filename="another"), 2, "no test in common"),
    ],
)
def test_files_that_cannot_be_compared(cli: RunCli, tmp_path: Path, content: str, code: int, words: str) -> None:
    before, after = files(tmp_path, line(100, 101), content)
    outcome = cli("bench", "--compare", before, after)
    assert outcome.code == code, outcome.err
    assert words in " ".join(outcome.err.split())


def test_settings_that_make_no_sense(cli: RunCli, tmp_path: Path) -> None:
    before, after = files(tmp_path, line(100, 101), line(100, 101))
    assert cli("bench", "--compare", before, after, "--fail-below", "2").code == 2
    assert cli("bench", "--fail-below", "0.9").code == 2
    assert cli("bench", "--compare", before, tmp_path / "none").code == 3
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert cli("bench", "--compare", before, pipe).code == 3
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    assert cli("bench", "--compare", before, loop).code == 3
    assert cli("bench", "--compare", before, before).code == 2


def test_names_of_a_file_do_no_harm(cli: RunCli, tmp_path: Path) -> None:
    evil = line(100, 101, model_filename="\x1b[2J[red]x", cpu_info="\x1b]0;a")
    before, after = files(tmp_path, evil, evil.replace("]0;a", "]0;b"))
    outcome = cli("bench", "--compare", before, after)
    assert outcome.code == 0
    assert "\x1b[2J" not in outcome.out + outcome.err
    assert "\x1b]0" not in outcome.err


def test_the_commit_is_found_without_git(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "mixq").mkdir()
    git = tmp_path / ".git"
    git.mkdir()
    monkeypatch.setattr(record.mixq, "__file__", str(tmp_path / "mixq" / "__init__.py"))
    assert record.commit() is None
    (git / "HEAD").write_text("ref: refs/heads/main\n")
    (git / "packed-refs").write_text("# pack-refs\n" + "b" * 40 + " refs/heads/main\n")
    assert record.commit() == "b" * 12
    (git / "refs" / "heads").mkdir(parents=True)
    (git / "refs" / "heads" / "main").write_text("a" * 40 + "\n")
    assert record.commit() == "a" * 12
    (git / "HEAD").write_text("c" * 40 + "\n")
    assert record.commit() == "c" * 12
    (git / "HEAD").write_text("ref: refs/../../secret\n")
    assert record.commit() is None
