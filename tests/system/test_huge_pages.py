"""Huge pages: what the system reports of them."""

from __future__ import annotations

import ctypes
import mmap
import sys
from pathlib import Path

import pytest
import torch

from mixq.system import huge_pages

MAPPINGS = """\
7f4f3ec00000-7f4f3ee00000 r--p 00000000 fe:00 123  /models/a.safetensors
Size:               2048 kB
Rss:                1000 kB
AnonHugePages:         0 kB
FilePmdMapped:       900 kB
VmFlags: rd mr
7f4f3ee00000-7f4f3f000000 rw-p 00000000 00:00 0
Rss:                3000 kB
AnonHugePages:       100 kB
FilePmdMapped:         0 kB
7f4f3f000000-7f4f3f200000 rw-p 00000000 00:00 0
Rss:                   0 kB
AnonHugePages:         0 kB
"""


@pytest.mark.parametrize(
    ("start", "end", "share"),
    [
        (0x7F4F3EC00000, 0x7F4F3EE00000, 0.9),
        (0x7F4F3EC01000, 0x7F4F3EC02000, 0.9),
        (0x7F4F3EC00000, 0x7F4F3EE00001, 0.25),
        (0x7F4F3EE00000, 0x7F4F3F000000, 100 / 3000),
        (0x7F4F3F000000, 0x7F4F3F200000, 0.0),
        (0x7F4F3F200000, 0x7F4F3F300000, 0.0),
    ],
)
def test_mappings_that_overlap_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: int, end: int, share: float
) -> None:
    monkeypatch.setattr(huge_pages, "_MAPPINGS", tmp_path / "smaps")
    assert huge_pages.share_in_huge_pages(start, end - start) == 0.0, "no such file: not known"
    (tmp_path / "smaps").write_text(MAPPINGS)
    assert huge_pages.share_in_huge_pages(start, end - start) == share


@pytest.mark.skipif(not huge_pages.SETTING.exists(), reason="the system has no transparent huge pages")
def test_the_share_of_real_memory() -> None:
    memory = huge_pages.allocate(64 << 20)
    assert memory.data_ptr() % huge_pages.HUGE_PAGE == 0
    memory.fill_(1)
    if not huge_pages.are_off():
        assert huge_pages.share_in_huge_pages(memory.data_ptr(), memory.nbytes) > 0.5
    small = mmap.mmap(-1, 64 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    small.madvise(mmap.MADV_NOHUGEPAGE)
    torch.frombuffer(small, dtype=torch.uint8).fill_(1)
    assert huge_pages.share_in_huge_pages(ctypes.addressof(ctypes.c_char.from_buffer(small)), 64 << 20) == 0.0


@pytest.mark.parametrize(("text", "off"), [("always [madvise] never\n", False), ("always madvise [never]\n", True)])
def test_the_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, off: bool) -> None:
    monkeypatch.setattr(huge_pages, "SETTING", tmp_path / "enabled")
    assert not huge_pages.are_off()
    (tmp_path / "enabled").write_text(text)
    assert huge_pages.are_off() == off


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone reports it")
def test_whether_files_can_be_in_huge_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert huge_pages.files_can_be_in_them(tmp_path) in (True, False)
    assert list(tmp_path.iterdir()) == []
    assert huge_pages.files_can_be_in_them(tmp_path / "not there") is None
    for share, can in ((0.0, False), (0.5, True)):
        monkeypatch.setattr(huge_pages, "share_in_huge_pages", lambda *_, share=share: share)
        assert huge_pages.files_can_be_in_them(tmp_path) == can
    monkeypatch.setattr(huge_pages, "_MAPPINGS", tmp_path / "not there")
    assert huge_pages.files_can_be_in_them(tmp_path) is None
