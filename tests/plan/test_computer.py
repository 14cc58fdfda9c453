"""A computer's figures: a file holds them as they are, and what makes no sense is refused by name."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixq.errors import ModelFileError, StorageError, UsageError
from mixq.plan.computer import Computer
from mixq.plan.presets import COMPUTERS, find_computer

LAPTOP = COMPUTERS["laptop-8gb"]
PATHS = ["name", "ram", "ram_free", "disk_bandwidth", "measured", "versions", "load", "cpu", "gpu"]
PATHS += [f"cpu.{key}" for key in LAPTOP.as_dict()["cpu"]] + [f"gpu.{key}" for key in LAPTOP.as_dict()["gpu"]]


def changed(path: str, value: object) -> dict[str, Any]:
    """Return the laptop's file with one figure that is another."""
    content = json.loads(json.dumps(LAPTOP.as_dict()))
    place, _, key = path.rpartition(".")
    (content[place] if place else content)[key] = value
    return content  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", COMPUTERS)
def test_a_file_holds_every_figure(name: str, tmp_path: Path) -> None:
    computer = replace(COMPUTERS[name], measured="2026-01-02T03:04:05+00:00", versions={"mixq": "1"})
    computer.write(tmp_path / "file")
    assert Computer.read(tmp_path / "file") == computer


def test_what_may_be_left_out() -> None:
    content = LAPTOP.as_dict()
    for key in ("gpu", "ram_free", "disk_bandwidth", "measured", "versions"):
        del content[key]
    found = Computer.from_dict(content, "file")
    assert (found.gpu, found.ram_free, found.disk_bandwidth, found.measured) == (None, None, None, None)
    assert found.cpu == LAPTOP.cpu


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("cpu.read_bandwidth", 51, "bytes per second, so 51 GB/s are 51e9"),
        ("gpu.copy_back", 12.5, "gpu.copy_back is 12.5"),
        ("cpu.flops", 1.5, "1.5 TFLOPS are 1.5e12"),
        ("cpu.layer_seconds", 60, "seconds, so 60 microseconds are 60e-6"),
        ("gpu.copy_latency", 20, "so 60 microseconds"),
        ("gpu.layer_seconds", -1e-6, "a number, 0 or above"),
        ("ram", 32, "bytes, so 32 GB are 32000000000"),
        ("gpu.memory", 8.0, "a whole number above 0"),
        ("gpu.memory", 10**400, "memory is 1000"),
        ("cpu.read_bandwidth", 10**400, "read_bandwidth is 1000"),
        ("cpu.cores", 0, "cores is 0"),
        ("cpu.cores", 10**6, "cores is 1000000"),
        ("cpu.cores", True, "cores is True"),
        ("load", 20, "a share, so 20 % are 0.2"),
        ("ram_free", LAPTOP.ram + 1, "at most ram"),
        ("gpu.free", 9 * 10**9, "gpu.free is 9000000000; it must be at most memory"),
        ("disk_bandwidth", "fast", "disk_bandwidth is 'fast'"),
        ("disk_bandwidth", 0, "disk_bandwidth is 0"),
        ("name", None, "name is None; it must be a string"),
        ("name", "x" * 201, "it must be a string of 1 to 200 characters"),
        ("measured", 2026, "measured is 2026; it must be a string"),
        ("versions", [], "versions is []; it must be"),
        ("cpu", None, "cpu is None; it must be an object"),
        ("gpu", [], "gpu is []; it must be an object"),
        ("gpu.bandwith", 1, "gpu.bandwith is an unknown key. Did you mean 'bandwidth'?"),
        ("\x1b[31m", 1, "unknown key"),
    ],
)
def test_a_figure_that_makes_no_sense_is_named(path: str, value: object, words: str) -> None:
    with pytest.raises(ModelFileError) as refused:
        Computer.from_dict(changed(path, value), "file")
    assert words in refused.value.message
    assert refused.value.message.isprintable()
    assert len(refused.value.message) < 400


@pytest.mark.parametrize("path", ["gpu.free", "gpu.pinned_limit", "ram_free", "cpu.cache_bytes", "cpu.pass_seconds"])
def test_nothing_is_a_figure_where_it_can_be(path: str) -> None:
    Computer.from_dict(changed(path, 0), "file")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)


@given(st.sampled_from(PATHS), json_values)
def test_whatever_stands_there_is_taken_or_refused(path: str, value: object) -> None:
    try:
        found = Computer.from_dict(changed(path, value), "file")
    except ModelFileError:
        return
    assert Computer.from_dict(json.loads(json.dumps(found.as_dict())), "again") == found
    if found.gpu is not None:
        found.hardware()


@given(json_values)
def test_whatever_the_file_is(value: object) -> None:
    if isinstance(value, Mapping) and value.get("format") == "mixq-hardware":
        return
    with pytest.raises(ModelFileError, match="is not a hardware file"):
        Computer.from_dict(value, "file")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ModelFileError, match="not a regular file"):
        Computer.read(tmp_path / "pipe")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="does not exist"):
        Computer.read(tmp_path / "nothing")
    with pytest.raises(StorageError):
        LAPTOP.write(tmp_path / "nowhere" / "file")


def test_what_the_scheduler_goes_by() -> None:
    hardware = LAPTOP.hardware()
    assert LAPTOP.gpu is not None
    assert (hardware.cpu_bandwidth, hardware.cpu_flops) == (LAPTOP.cpu.kernel_bandwidth, LAPTOP.cpu.flops)
    assert (hardware.gpu_bandwidth, hardware.copy_bandwidth) == (LAPTOP.gpu.bandwidth, LAPTOP.gpu.copy_bandwidth)
    assert hardware.ram == LAPTOP.cpu.read_bandwidth
    assert hardware.disk_bandwidth == LAPTOP.disk_bandwidth
    with pytest.raises(UsageError, match="has no GPU"):
        COMPUTERS["cpu-laptop"].hardware()


def test_presets_are_computers_that_a_file_could_hold() -> None:
    assert set(COMPUTERS) == {"laptop-8gb", "rtx-3060-12gb", "rtx-4090", "cpu-laptop"}
    for computer in COMPUTERS.values():
        assert Computer.from_dict(computer.as_dict(), "preset") == computer
        assert computer.cpu.kernel_bandwidth <= computer.cpu.read_bandwidth
        if computer.gpu is not None:
            assert computer.gpu.copy_under_load <= computer.gpu.copy_bandwidth < computer.cpu.read_bandwidth
            assert computer.gpu.bandwidth > 2 * computer.cpu.read_bandwidth


def test_find_a_preset_or_a_file(tmp_path: Path) -> None:
    assert find_computer("rtx-4090") is COMPUTERS["rtx-4090"]
    LAPTOP.write(tmp_path / "mine.json")
    assert find_computer(str(tmp_path / "mine.json")) == LAPTOP
    for name in ("rtx-409", "~nobody-of-that-name/file", "x" * 5000, "\0", str(tmp_path)):
        with pytest.raises(UsageError, match="neither a hardware file nor a preset"):
            find_computer(name)
