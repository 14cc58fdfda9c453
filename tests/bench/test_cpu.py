"""Which processor a table is for, and the limits that are measured beside it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.bench import cpu
from tests.bench.cpu import Cpu
from tests.bench.int8_peak import FEATURES, Int8Peak

INFO = """processor\t: 0
vendor_id\t: {vendor}
cpu family\t: {family}
model\t\t: {model}
model name\t: Some CPU
stepping\t: 2
flags\t\t: fpu avx2 sse4_2 avx_vnni amx_int8

processor\t: 1
model name\t: another
"""


@pytest.mark.parametrize(
    ("vendor", "family", "model", "kind", "title"),
    [
        ("GenuineIntel", 6, 207, "intel_6_207", "Intel, family 6, model 207"),
        ("AuthenticAMD", 25, 1, "zen3", "AMD Zen 3"),
        ("AuthenticAMD", 25, 17, "zen4", "AMD Zen 4"),
        ("AuthenticAMD", 25, 97, "zen4", "AMD Zen 4"),
        ("AuthenticAMD", 25, 33, "zen3", "AMD Zen 3"),
        ("AuthenticAMD", 25, 200, "amd_25_200", "AMD, family 25, model 200"),
        ("AuthenticAMD", 26, 2, "zen5", "AMD Zen 5"),
        ("AuthenticAMD", 26, 80, "amd_26_80", "AMD, family 26, model 80"),
    ],
)
def test_the_kind_of_a_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vendor: str, family: int, model: int, kind: str, title: str
) -> None:
    (tmp_path / "cpuinfo").write_text(INFO.format(vendor=vendor, family=family, model=model))
    monkeypatch.setattr(cpu, "CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(cpu, "physical_cores", lambda: 1)
    found = Cpu.read()
    assert (found.kind, found.title) == (kind, title)
    assert str(found) == f"Some CPU, family {family}, model {model}, stepping 2, 1 core, avx2 avx_vnni amx_int8"


def test_a_cpu_that_tells_little_has_a_kind_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "CPU_INFO", tmp_path / "nowhere")
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    monkeypatch.setattr("platform.processor", lambda: "")
    monkeypatch.setattr(cpu, "physical_cores", lambda: 8)
    found = Cpu.read()
    assert (found.kind, found.title, str(found)) == ("arm64", "arm64", "arm64, 8 cores")


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no compiler")
def test_the_integer_loops_run_as_often_as_asked(tmp_path: Path) -> None:
    """Sums and products of each instruction: 64 bytes of 512 bits, 16 x 16 x 64 of a tile."""
    per_loop = {"avx2": 8 * 32, "avx_vnni": 12 * 32, "avx512_vnni": 16 * 64, "amx_int8": 4 * 16 * 16 * 64}
    peak = Int8Peak(Cpu.read().features, tmp_path)
    assert peak.names == [name for name in FEATURES if name in Cpu.read().features]
    for name in peak.names:
        assert peak.operations(name, 1000) in ({0} if name == "amx_int8" else set()) | {1000 * 2 * per_loop[name]}


def test_without_a_compiler_there_is_no_integer_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    assert Int8Peak(["avx2"], tmp_path).names == []
