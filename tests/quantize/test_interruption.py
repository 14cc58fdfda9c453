"""Killed and resumed jobs: at every step the folder is either whole or resumed to the same bytes."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mixq.errors import MixqError, ModelFileError, UsageError
from mixq.formats import lock
from mixq.quantize.events import ShardDone, Started, TensorDone
from mixq.quantize.job import Job, quantize
from mixq.quantize.verify import verify
from tests.checkpoints import write_tiny_mixtral
from tests.quantize.disasters import Contents, contents, interrupted, is_loadable


def killed_at(step: int, source: Path, target: Path) -> bool:
    """Quantize in a child that dies before its `step`-th rename (odd steps) or after it; return whether it died.

    Every file of a folder appears by a rename, so these are all the moments at which the folder's state changes.
    """
    child = os.fork()
    if child == 0:
        renames = 0
        rename = Path.replace

        def dying(path: Path, other: Path) -> Path:
            nonlocal renames
            renames += 1
            if 2 * renames - 1 == step:
                os._exit(9)
            renamed = rename(path, other)
            if 2 * renames == step:
                os._exit(9)
            return renamed

        Path.replace = dying  # type: ignore[assignment,method-assign]
        try:
            quantize(source, target)
        except BaseException:  # noqa: BLE001 - the child must not go on into pytest
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 9)
    return code == 9


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_every_rename_and_gone_on_with_gives_the_same_bytes(
    source: Path, expected: Contents, tmp_path: Path
) -> None:
    step = 1
    while killed_at(step, source, target := tmp_path / f"killed-{step}"):
        if is_loadable(target):
            assert {name: expected[name] for name in expected} == {n: contents(target)[n] for n in expected}
        quantize(source, target)
        assert contents(target) == expected, f"killed at step {step}"
        step += 1
    assert contents(target) == expected
    # 3 shards, job.json 4 times, tokenizer, its config, generation_config, index, mixq.json, config: 13 renames.
    assert step == 2 * 13 + 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_side_file_that_the_source_loses_meanwhile_does_not_stay(source: Path, tmp_path: Path) -> None:
    step = 1
    while killed_at(step, source, target := tmp_path / f"killed-{step}"):
        if (target / "tokenizer.model").exists():
            break
        step += 1
    (source / "tokenizer.model").unlink()
    quantize(source, target)
    assert not (target / "tokenizer.model").exists()
    assert verify(target).ok


SLOW_JOB = """
import sys, time
from mixq.quantize.job import Job
from mixq.quantize.events import TensorDone
for event in Job(sys.argv[1], sys.argv[2]).run():
    if isinstance(event, TensorDone):
        print("tensor", flush=True)
        time.sleep(0.05)
"""


@pytest.mark.skipif(os.name == "nt", reason="needs signals")
def test_sigkill_in_the_middle_of_a_shard(source: Path, expected: Contents, tmp_path: Path) -> None:
    target = tmp_path / "out"
    arguments = [sys.executable, "-c", SLOW_JOB, str(source), str(target)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"}) as process:
        assert process.stdout is not None
        for _ in range(17):  # 13 tensors are in the first layer
            assert process.stdout.readline() == b"tensor\n"
        process.send_signal(signal.SIGKILL)
    names = set(contents(target))
    assert {"job.json", "job.lock", "model-00001-of-00003.safetensors"} <= names
    assert "model-00002-of-00003.safetensors.partial" in names
    assert "config.json" not in names
    with pytest.raises(ModelFileError) as error:
        verify(target)
    assert "resume it" in str(error.value.hint)
    result = quantize(source, target)
    assert result.shards_done_before == 1
    assert any("1 of 3 shards" in text for text in result.notices)
    assert contents(target) == expected


def test_closing_the_generator_leaves_a_resumable_folder_without_leftovers(
    source: Path, expected: Contents, tmp_path: Path
) -> None:
    run = Job(source, tmp_path / "out").run()
    for event in run:
        if isinstance(event, ShardDone):
            break
    next(run)
    run.close()  # type: ignore[attr-defined]
    assert set(contents(tmp_path / "out")) == {"job.json", "model-00001-of-00003.safetensors"}
    events = list(Job(source, tmp_path / "out").run())
    assert isinstance(events[0], Started)
    assert events[0].shards_done == 1
    done = next(event.weights_done for event in events if isinstance(event, TensorDone))
    assert done > events[0].weights_done > 0
    assert contents(tmp_path / "out") == expected


def test_a_shard_damaged_in_between_is_made_again(source: Path, expected: Contents, tmp_path: Path) -> None:
    target = interrupted(source, tmp_path / "out")
    shard = target / "model-00001-of-00003.safetensors"
    damaged = bytearray(shard.read_bytes())
    damaged[-7] ^= 4
    shard.write_bytes(damaged)
    result = quantize(source, target)
    assert result.shards_done_before == 0
    assert any("model-00001-of-00003.safetensors is missing or damaged" in text for text in result.notices)
    assert contents(target) == expected


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"format": "w4"}, "format = nl4; it is now w4"),
        ({"group": 64}, "mix: q = nl4:16; it is now nl4:64"),
        ({"mix": "lm_head=bf16"}, "mix: lm_head = w8:128; it is now bf16"),
    ],
)
def test_other_settings_are_refused(settings: dict[str, object], named: str, source: Path, tmp_path: Path) -> None:
    target = interrupted(source, tmp_path / "out")
    before = contents(target)
    with pytest.raises(UsageError, match=named):
        Job(source, target, **settings)  # type: ignore[arg-type]
    assert contents(target) == before
    quantize(source, target)
    before = contents(target)
    with pytest.raises(UsageError, match=named):
        Job(source, target, **settings)  # type: ignore[arg-type]
    assert contents(target) == before


def test_another_source_is_refused(source: Path, tmp_path: Path) -> None:
    target = interrupted(source, tmp_path / "out")
    write_tiny_mixtral(tmp_path / "other", hidden=128, ffn=128, experts=2, seed=1)
    with pytest.raises(UsageError, match="started with another checkpoint, 'source'; this is 'other'"):
        Job(tmp_path / "other", target)


def test_a_moved_source_is_the_same_source(source: Path, expected: Contents, tmp_path: Path) -> None:
    target = interrupted(source, tmp_path / "out")
    source.rename(tmp_path / "moved")
    quantize(tmp_path / "moved", target)
    assert contents(target) == expected


def test_a_finished_folder_is_left_as_it_is(source: Path, tmp_path: Path) -> None:
    first = quantize(source, tmp_path / "out")
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    again = quantize(source, tmp_path / "out")
    assert again.already_done
    assert again.sizes == first.sizes
    assert again.errors.mean == first.errors.mean
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before


@pytest.mark.parametrize("change", ["changed", "added", "gone from the folder", "damaged in the folder"])
def test_side_files_of_a_finished_folder_follow_the_source(change: str, source: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    if change == "added":
        (source / "tokenizer.model").rename(tmp_path / "kept")
        quantize(source, target)
        (tmp_path / "kept").rename(source / "tokenizer.model")
    else:
        quantize(source, target)
    if change == "changed":
        (source / "tokenizer.model").write_bytes(b"another tokenizer")
    elif change == "gone from the folder":
        (target / "tokenizer.model").unlink()
    elif change == "damaged in the folder":
        (target / "tokenizer.model").write_bytes(b"")
    shards = {path.name: path.stat().st_mtime_ns for path in target.glob("*.safetensors")}
    result = quantize(source, target)
    assert not result.already_done
    assert any(text.startswith("tokenizer.model") for text in result.notices)
    assert {path.name: path.stat().st_mtime_ns for path in target.glob("*.safetensors")} == shards
    quantize(source, tmp_path / "fresh")
    assert contents(target) == contents(tmp_path / "fresh")
    assert quantize(source, target).already_done


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_while_side_files_follow_the_source(source: Path, tmp_path: Path) -> None:
    step, died = 0, True
    while died:
        step += 1
        target = tmp_path / f"killed-{step}"
        (source / "tokenizer.model").write_bytes(b"the first tokenizer")
        quantize(source, target)
        (source / "tokenizer.model").write_bytes(b"the second tokenizer")
        (source / "LICENSE").write_bytes(f"number {step}".encode())
        died = killed_at(step, source, target)
        quantize(source, target)
        quantize(source, tmp_path / f"fresh-{step}")
        assert contents(target) == contents(tmp_path / f"fresh-{step}"), f"killed at step {step}"
        (source / "LICENSE").unlink()
    assert step == 2 * 3 + 1  # tokenizer, licence, mixq.json


def test_a_side_file_that_the_source_lost_is_refused(source: Path, tmp_path: Path) -> None:
    quantize(source, tmp_path / "out")
    before = contents(tmp_path / "out")
    (source / "tokenizer.model").unlink()
    with pytest.raises(UsageError, match=r"contains tokenizer\.model, which is no longer in the source"):
        quantize(source, tmp_path / "out")
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize("change", [-100, 1])
def test_a_finished_folder_with_a_shard_of_another_size_is_not_called_done(
    change: int, source: Path, tmp_path: Path
) -> None:
    quantize(source, tmp_path / "out")
    shard = tmp_path / "out" / "model-00002-of-00003.safetensors"
    size = shard.stat().st_size
    os.truncate(shard, size + change)
    named = rf"model-00002-of-00003\.safetensors has {size + change:,} bytes now instead of {size:,}"
    with pytest.raises(ModelFileError, match=named) as error:
        quantize(source, tmp_path / "out")
    assert "mixq verify" in str(error.value.hint)


def test_a_finished_folder_that_lost_a_file_is_not_called_done(source: Path, tmp_path: Path) -> None:
    quantize(source, tmp_path / "out")
    (tmp_path / "out" / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ModelFileError, match=r"model-00002-of-00003\.safetensors is missing"):
        quantize(source, tmp_path / "out")


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"format_version": 1, "settings": {}, "source": {}, "shards": 3}']
)
def test_a_damaged_journal_is_refused(content: str, source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "job.json").write_text(content)
    with pytest.raises(ModelFileError, match=r"job\.json"):
        Job(source, tmp_path / "out")


def test_two_jobs_on_one_target(source: Path, expected: Contents, tmp_path: Path) -> None:
    first = Job(source, tmp_path / "out").run()
    while not isinstance(next(first), TensorDone):
        pass
    before = contents(tmp_path / "out")
    with pytest.raises(MixqError, match="another quantize job is working on") as error:
        quantize(source, tmp_path / "out")
    assert error.value.exit_code == 1
    assert contents(tmp_path / "out") == before
    list(first)
    assert contents(tmp_path / "out") == expected


def test_a_lock_file_left_behind_locks_nothing(source: Path, expected: Contents, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / lock.FILE_NAME).write_bytes(b"")
    quantize(source, tmp_path / "out")
    assert contents(tmp_path / "out") == expected


def test_on_windows_the_lock_file_is_removed_once_it_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[int] = []
    close, unlink = os.close, Path.unlink

    def noted_close(handle: int) -> None:
        closed.append(handle)
        close(handle)

    def unlink_as_windows(path: Path, missing_ok: bool = False) -> None:
        if not closed:
            raise PermissionError(errno.EACCES, "the file is open")
        unlink(path, missing_ok)

    with lock.target_lock(tmp_path):
        monkeypatch.setattr(os, "close", noted_close)
        monkeypatch.setattr(Path, "unlink", unlink_as_windows)
        monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.undo()
    assert len(closed) == 1
    assert not list(tmp_path.iterdir())


def test_on_windows_a_lock_file_that_another_job_has_opened_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError(errno.EACCES, "the file is open")

    with lock.target_lock(tmp_path):
        monkeypatch.setattr(Path, "unlink", refuse)
        monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.undo()
    with lock.target_lock(tmp_path):  # and locks nothing
        pass


def test_target_that_is_the_source_a_file_or_somebody_elses(source: Path, tmp_path: Path) -> None:
    before = contents(source)
    with pytest.raises(UsageError, match="same folder"):
        quantize(source, source / ".." / "source")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="is a file"):
        quantize(source, tmp_path / "file")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("a cat")
    with pytest.raises(UsageError, match=r"not empty \(cat\.jpg\)"):
        quantize(source, tmp_path / "photos")
    assert contents(source) == before
    assert contents(tmp_path / "photos") == {"cat.jpg": b"a cat"}
