"""The demo model's folder in the cache: made once, whole or not at all, by one process or two."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

import pytest

from mixq.cli import loading
from mixq.cli import quantize as quantize_command
from mixq.errors import StorageError
from mixq.quantize import verify
from mixq.system import paths
from tests.cli.conftest import RunCli


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch, tiny: Path) -> Path:
    """Let the tiny model be the shipped demo model."""
    monkeypatch.setattr(paths, "demo_source", lambda: tiny)
    return tiny


def test_model_left_out_is_the_demo_model_made_on_first_use(cli: RunCli, demo: Path) -> None:
    first = cli("run", "-p", "hi", "--max-tokens", "1", "--json")
    assert first.code == 0
    assert "quantizing the demo model" in first.err
    folder = Path(json.loads(first.out)["model"])
    assert folder.is_relative_to(paths.cache())
    assert verify(folder).ok
    made = folder.stat().st_mtime_ns
    again = cli("run", "-p", "hi", "--max-tokens", "1")
    assert "quantizing" not in again.err
    assert folder.stat().st_mtime_ns == made


def test_another_demo_model_is_another_folder(
    demo: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = loading.quantized_demo()
    changed = tmp_path / "changed"
    changed.mkdir()
    for path in tiny.iterdir():
        (changed / path.name).symlink_to(path)
    (changed / "generation_config.json").write_text('{"do_sample": false}')
    monkeypatch.setattr(paths, "demo_source", lambda: changed)
    assert loading.quantized_demo() != first


def test_two_at_once_both_succeed(demo: Path) -> None:
    barrier = threading.Barrier(2)
    found: list[Path] = []

    def make() -> None:
        barrier.wait()
        found.append(loading.quantized_demo())

    threads = [threading.Thread(target=make) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2
    assert found[0] == found[1]
    assert verify(found[0]).ok
    assert [path.name for path in found[0].parent.iterdir()] == [found[0].name]


def test_interruption_leaves_nothing_behind(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(quantize_command, "run_job", interrupt)
        with pytest.raises(KeyboardInterrupt):
            loading.quantized_demo()
    assert list((paths.cache() / "demo").iterdir()) == []
    assert verify(loading.quantized_demo()).ok


def test_what_a_killed_run_left_goes_after_a_day(demo: Path) -> None:
    folder = paths.cache() / "demo"
    for name, hours in (("killed.partial", 25), ("at work.partial", 1), ("another version", 25)):
        (folder / name / "model").mkdir(parents=True)
        then = time.time() - hours * 3600
        os.utime(folder / name, (then, then))
    made = loading.quantized_demo()
    assert {path.name for path in folder.iterdir()} == {"at work.partial", "another version", made.name}


def test_cache_that_cannot_be_written(demo: Path, mixq_home: Path) -> None:
    (mixq_home / "cache").write_text("a file where the folder should be")
    with pytest.raises(StorageError, match="cache cannot be written"):
        loading.quantized_demo()


def test_installation_without_the_demo_model(cli: RunCli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(paths, "demo_source", lambda: tmp_path)
    outcome = cli("run", "-p", "hi")
    assert outcome.code == 3
    assert "no demo model" in outcome.err
