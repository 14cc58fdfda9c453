"""Scheme names as users type them."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mixq.errors import UsageError
from mixq.formats.scheme import DEFAULT_GROUP_SIZE, GROUP_SIZES, Scheme


@pytest.mark.parametrize(
    ("text", "name", "group_size"),
    [("nl4", "nl4", 32), ("nl4:16", "nl4", 16), ("w4", "w4", 32), ("w8", "w8", 128), (" nf4 ", "nf4", 64)],
)
def test_a_name_means_a_scheme(text: str, name: str, group_size: int) -> None:
    assert Scheme.parse(text) == Scheme(name, group_size)


def test_text_and_scheme_are_the_same() -> None:
    for name, sizes in GROUP_SIZES.items():
        assert DEFAULT_GROUP_SIZE[name] in sizes
        for size in sizes:
            assert Scheme.parse(str(Scheme(name, size))) == Scheme(name, size)


@pytest.mark.parametrize(
    "text", ["", ":", "nl5", "nl4:", "nl4:x", "nl4:-16", "nl4:128", "w4:16", "w8:1e2", "nl4:32:1", "nl4:³²"]
)
def test_anything_else_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError):
        Scheme.parse(text)


def test_a_wrong_group_lists_the_allowed_ones() -> None:
    with pytest.raises(UsageError, match="choose from 16, 32, 64"):
        Scheme.parse("nl4:128")
    with pytest.raises(UsageError, match="Did you mean 'nl4'"):
        Scheme.parse("nl")


def test_naming_schemes_needs_no_torch() -> None:
    code = "import sys, mixq.formats.scheme; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
