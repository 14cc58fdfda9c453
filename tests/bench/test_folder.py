"""The bench of folders in huge pages: its ratios, the loop that reads pages, and the state of the page cache."""

from __future__ import annotations

import argparse
import mmap
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch

from mixq.system.huge_pages import share_in_huge_pages
from tests.bench import folder
from tests.bench.folder import Measured
from tests.bench.page_cache import HUGE, SMALL, bring_into_cache, map_file
from tests.bench.page_walks import Reader

linux = pytest.mark.skipif(sys.platform != "linux", reason="the page cache is Linux's")


def test_ratios_are_medians_of_the_rounds() -> None:
    _, ours, *_, theirs = folder.SIDES
    other = "folder, page cache in pages of 4 KiB"
    measured = {
        folder.MEMORY: Measured(["a build"], [10.0, 40.0, 20.0], []),
        ours: Measured(["mapped in huge pages"], [9.0, 20.0, 19.0], [0.2, 0.9, 0.4]),
        other: Measured(["copied"], [9.0, 20.0, 19.0], [0.2, 0.9, 0.4]),
        theirs: Measured(["a build"], [], [1.0, 1.0, 1.0]),
    }
    asked = argparse.Namespace(threads=2, layers=1, rounds=3, mix="all-nl4")
    how, table = folder.report(measured, asked)
    assert "3 rounds" in how
    assert f"| {folder.MEMORY} | a build | 20.0 [10.0-40.0] |  |  |  |" in table
    assert f"| {other} | copied | 19.0 [9.0-20.0] | 0.90 | 0.40 [0.20-0.90] s | 0.40 |" in table
    assert f"| {theirs} | a build |  |  | 1.00 [1.00-1.00] s |  |" in table
    same_state = f"| {ours} | mapped in huge pages | 19.0 [9.0-20.0] | 0.90 | 0.40 [0.20-0.90] s |  |"
    assert same_state in table, "llama.cpp was not measured with its file in huge pages"


@pytest.mark.skipif(shutil.which(os.environ.get("CC", "cc")) is None, reason="the loop needs a C compiler")
def test_the_loop_reads_every_page_once(tmp_path: Path) -> None:
    reader = Reader(tmp_path)
    pages = 40
    memory = torch.frombuffer(mmap.mmap(-1, pages * mmap.PAGESIZE), dtype=torch.uint8)
    memory.random_(generator=torch.Generator().manual_seed(0))
    words = memory.view(torch.int64).view(pages, -1)
    for order in (torch.arange(pages), torch.randperm(pages), torch.tensor([7, 7, 0])):
        expected = int(words[order].sum()) % 2**64
        for ask in (0, 1):
            for threads in (1, 3):
                assert reader.sum(memory, order.int(), ask, threads) == expected


@linux
def test_files_come_into_the_page_cache_unchanged(tmp_path: Path) -> None:
    content = torch.randint(256, (8 << 20,), dtype=torch.uint8)
    for state in (HUGE, SMALL):
        (tmp_path / state).write_bytes(memoryview(content.numpy()))
        bring_into_cache(tmp_path / state, state)
        mapped = map_file(tmp_path / state)
        assert mapped.equal(content)
        if state == SMALL:
            assert share_in_huge_pages(mapped.data_ptr(), mapped.nbytes) == 0.0
