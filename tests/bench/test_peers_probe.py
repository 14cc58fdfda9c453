"""The limits beside the sides: which are measured, and which a share is formed with."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.bench import peers_probe
from tests.bench.cpu import Cpu
from tests.bench.peers_probe import INT8, READ, Probe
from tests.bench.peers_sides import MEASURES

CPU = Cpu("Some CPU", "Intel", 6, 207, 2, 4, ("avx2", "avx512_vnni", "amx_int8"))


class FakePeak:
    """Loops of the instruction sets given; AMX is twenty times as fast."""

    def __init__(self, features: Iterable[str], folder: Path) -> None:
        self.names = list(features)

    def rate(self, name: str, threads: int) -> float:
        return threads * {"avx2": 1e11, "avx512_vnni": 4e11, "amx_int8": 80e11}[name]


class FakeBandwidth:
    def __init__(self, threads: int) -> None:
        self.threads = threads

    def probe(self) -> float:
        return self.threads * 12e9


@pytest.fixture(autouse=True)
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers_probe, "Int8Peak", FakePeak)
    monkeypatch.setattr(peers_probe, "NativeKernels", lambda threads: threads)
    monkeypatch.setattr(peers_probe, "Bandwidth", FakeBandwidth)
    monkeypatch.setattr(peers_probe.native_library, "library", lambda: "a library")


def measured(tmp_path: Path, *measures: str, threads: int = 4, avx2: bool = False) -> Probe:
    probe = Probe(CPU, threads, [MEASURES[name] for name in measures], tmp_path, avx2=avx2)
    for row, count, figure in probe.measurements():
        probe.add(row, count, figure())
    return probe


def test_decode_and_prompts_have_their_limits_with_one_thread_and_all(tmp_path: Path) -> None:
    probe = measured(tmp_path, "decode", "prompt-512")
    assert probe.figures[READ] == {1: [12.0], 4: [48.0]}
    assert probe.figures[f"{INT8}, avx512_vnni"] == {1: [400.0], 4: [1600.0]}
    assert probe.reads() == [48.0]
    assert probe.int8_limits() == {"int8": 1600.0, "AMX": 32000.0}


def test_only_what_the_measures_need_is_measured(tmp_path: Path) -> None:
    assert list(measured(tmp_path, "decode").figures) == [READ]
    assert READ not in measured(tmp_path, "prompt-128").figures
    assert measured(tmp_path, "first-token").figures == {}


def test_sides_with_avx2_are_compared_with_the_limit_of_avx2(tmp_path: Path) -> None:
    probe = measured(tmp_path, "prompt-512", threads=1, avx2=True)
    assert probe.figures == {f"{INT8}, avx2": {1: [100.0]}}
    assert probe.int8_limits() == {"int8": 100.0}
