"""Memory that takes the place of other memory: all of it or none, and nothing stays behind."""

from __future__ import annotations

import ctypes
import mmap
import sys
from pathlib import Path

import pytest

from mixq.errors import DoesNotFitError
from mixq.system import huge_pages
from mixq.system.huge_block import HugeBlock, map_file
from mixq.system.huge_pages import HUGE_PAGE

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux alone moves memory")


def is_mapped(address: int | None) -> bool:
    assert address is not None
    ranges = (line.split(" ")[0].split("-") for line in Path("/proc/self/maps").read_text().splitlines())
    return any(int(start, 16) <= address < int(end, 16) for start, end in ranges)


@pytest.fixture
def place() -> tuple[mmap.mmap, int]:
    """Four huge pages of sevens, and the first address in them that is a multiple of one."""
    memory = mmap.mmap(-1, 5 * HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.write(b"\7" * len(memory))
    return memory, -ctypes.addressof(ctypes.c_char.from_buffer(memory)) % HUGE_PAGE


def test_a_block_takes_the_place_of_other_memory(place: tuple[mmap.mmap, int]) -> None:
    memory, first = place
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory)) + first
    with HugeBlock(2 * HUGE_PAGE) as block:
        place_before = block._address
        assert is_mapped(place_before)
        block.view[:] = b"\1" * (2 * HUGE_PAGE)
        assert memory[first : first + HUGE_PAGE] == b"\7" * HUGE_PAGE
        block.move_to(address + HUGE_PAGE)
    assert not is_mapped(place_before)
    assert is_mapped(address + HUGE_PAGE)
    assert memory[: first + HUGE_PAGE] == b"\7" * (first + HUGE_PAGE)
    assert memory[first + HUGE_PAGE : first + 3 * HUGE_PAGE] == b"\1" * (2 * HUGE_PAGE)
    assert memory[first + 3 * HUGE_PAGE :] == b"\7" * (2 * HUGE_PAGE - first)
    if huge_pages.SETTING.exists() and not huge_pages.are_off():
        ranges = huge_pages.ranges_in_huge_pages(address + HUGE_PAGE, 2 * HUGE_PAGE)
        assert ranges in (None, [(address + HUGE_PAGE, address + 3 * HUGE_PAGE)])


def test_a_block_that_is_not_moved_is_freed() -> None:
    block = HugeBlock(HUGE_PAGE)
    place = block._address
    with pytest.raises(KeyboardInterrupt), block:
        raise KeyboardInterrupt
    assert not is_mapped(place)


def test_memory_that_the_system_refuses() -> None:
    with pytest.raises(DoesNotFitError, match="the system refused"):
        HugeBlock(1 << 50)
    block = HugeBlock(HUGE_PAGE)
    place = block._address
    with block, pytest.raises(DoesNotFitError, match=r"the system refused 2\.1 MB of memory"):
        block.move_to(1 << 62)
    assert not is_mapped(place)


def test_a_file_mapped_at_an_address(place: tuple[mmap.mmap, int], tmp_path: Path) -> None:
    memory, first = place
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory)) + first
    (tmp_path / "file").write_bytes(b"\2" * mmap.PAGESIZE + b"\3" * mmap.PAGESIZE)
    with (tmp_path / "file").open("rb") as file:
        map_file(address, mmap.PAGESIZE, file.fileno(), mmap.PAGESIZE)
        with pytest.raises(OSError, match="Invalid argument"):
            map_file(address, mmap.PAGESIZE, file.fileno(), 1)
    assert memory[first : first + mmap.PAGESIZE] == b"\3" * mmap.PAGESIZE
    memory[first] = 9  # private
    assert (tmp_path / "file").read_bytes()[mmap.PAGESIZE] == 3
