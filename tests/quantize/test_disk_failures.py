"""Disks that fail, fill up or cannot be written: the folder stays whole, or is resumed to the same bytes."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mixq.errors import StorageError
from mixq.quantize.job import Job, quantize
from tests.quantize.disasters import Contents, contents, interrupted, is_loadable


def is_refused(source: Path, target: Path) -> bool:
    """Quantize; whether it ended with the error of a disk."""
    try:
        quantize(source, target)
    except StorageError:
        return True
    return False


FAILING_CALLS = ["os.fsync", "os.posix_fallocate", "pathlib.Path.replace", "os.open"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("call", FAILING_CALLS)
def test_every_write_that_fails_ends_clearly_and_is_gone_on_with(
    call: str, code: int, source: Path, expected: Contents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fail the first, second, third ... call of one kind until the job gets through untouched."""
    owner, name = (Path, "replace") if "Path" in call else (os, call.removeprefix("os."))
    if not hasattr(owner, name):
        pytest.skip(f"no {call} here")
    real: Callable[..., object] = getattr(owner, name)
    for failing in range(1, 100):
        target = tmp_path / f"{call}-{failing}"
        calls = 0

        def fail(*arguments: object, failing: int = failing, target: Path = target, **options: object) -> object:
            nonlocal calls
            if call != "os.open" or str(target) in str(arguments[0]):  # Python itself opens other files
                calls += 1
                if calls == failing:
                    raise OSError(code, os.strerror(code))
            return real(*arguments, **options)

        with monkeypatch.context() as patched:
            patched.setattr(owner, name, fail)
            failed = is_refused(source, target)
        if not failed:
            assert calls < failing
            break
        assert not is_loadable(target) or contents(target).keys() >= expected.keys()
        assert not list(target.glob("*.partial"))
        quantize(source, target)
        assert contents(target) == expected, f"{call} number {failing}"
    assert failing > 1


class Disk:
    """A disk with `free` bytes, for shutil.disk_usage."""

    def __init__(self, free: int) -> None:
        self.free = free

    def __call__(self, path: Path) -> Disk:
        return self


def test_not_enough_disk_is_refused_before_anything_is_written(
    source: Path, expected: Contents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = Job(source, tmp_path / "out").dry_run().disk_needed
    monkeypatch.setattr("shutil.disk_usage", Disk(needed - 1234))
    with pytest.raises(StorageError) as error:
        quantize(source, tmp_path / "out")
    assert (
        f"needs {needed:,} bytes, but only {needed - 1234:,} are free: 1,234 bytes are missing" in error.value.message
    )
    assert error.value.exit_code == 5
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr("shutil.disk_usage", Disk(needed))
    quantize(source, tmp_path / "out")
    assert contents(tmp_path / "out") == expected


def test_what_is_there_already_needs_no_disk(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Job(source, tmp_path / "out").dry_run().disk_needed
    target = interrupted(source, tmp_path / "out")
    shard = (target / "model-00001-of-00003.safetensors").stat().st_size
    rest = Job(source, target).dry_run().disk_needed
    assert rest == whole - shard
    (target / "model-00002-of-00003.safetensors.partial").write_bytes(bytes(1000))  # goes away first
    assert Job(source, target).dry_run().disk_needed == rest - 1000
    monkeypatch.setattr("shutil.disk_usage", Disk(rest - 1000))
    quantize(source, target)


def test_a_disk_that_fills_up_on_the_way(
    source: Path, expected: Contents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "posix_fallocate", full, raising=False)
        with pytest.raises(StorageError, match=r"model-00001-of-00003\.safetensors \([\d,]+ bytes\) does not fit"):
            quantize(source, tmp_path / "out")
    quantize(source, tmp_path / "out")
    assert contents(tmp_path / "out") == expected


@pytest.mark.parametrize("place", ["mkdir", "lock"])
def test_read_only_target(place: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    if place == "mkdir":
        monkeypatch.setattr(Path, "mkdir", refuse)
    else:
        (tmp_path / "out").mkdir()
        monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(StorageError, match="cannot be written: Permission denied") as error:
        quantize(source, tmp_path / "out")
    assert error.value.exit_code == 5
    assert "can write" in str(error.value.hint)


@pytest.mark.skipif(not Path("/sys").is_dir(), reason="needs a place where not even root may write")
def test_read_only_folder_on_disk(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", Disk(10**12))  # /sys says that it has no bytes free
    with pytest.raises(StorageError, match="cannot be written"):
        quantize(source, "/sys/mixq-out")
