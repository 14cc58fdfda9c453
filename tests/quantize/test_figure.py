"""`--report FILE`: the picture and the page, whatever is in them."""

from __future__ import annotations

import importlib.util
import math
import re
import struct
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from mixq.errors import StorageError, UsageError
from mixq.formats.manifest import Manifest
from mixq.quantize.error_grid import ErrorGrid
from mixq.quantize.figure import check_figure, draw
from mixq.quantize.job import quantize
from mixq.quantize.report import ErrorRow, SizeRow, SizeTable
from tests.checkpoints import write_tiny_mistral, write_tiny_mixtral

needs_matplotlib = pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="needs matplotlib")

SIZES = SizeTable((SizeRow("experts", "nl4:32", 3, 1 << 20, 558_000), SizeRow("norm", "bfloat16", 1, 64, 128)), 99_000)
ATTENTION = "model.layers.{}.self_attn.{}_proj"
EXPERT = "model.layers.{}.block_sparse_moe.experts.{}.{}"
EVIL = """</svg><script>alert(1)</script><img src=x onerror="a()"> & $\\frac{1$ --> \x1b[31m 模型 'q'"""


def errors_of(layers: int, experts: int) -> dict[str, float]:
    errors = {
        ATTENTION.format(layer, m): 0.004 if m in "qo" else 4e-5
        for layer in range(layers)
        for m in ("q", "k", "v", "o")
    }
    for layer in range(layers):
        for expert in range(experts):
            errors |= {EXPERT.format(layer, expert, m): 0.005 + 1e-5 * layer for m in ("w1", "w2", "w3")}
    return errors


def drawn(path: Path, **changes: Any) -> bytes:
    given: dict[str, Any] = {
        "title": "model-nl4",
        "errors": errors_of(3, 4),
        "sizes": SIZES,
        "facts": [("source", "model, bfloat16"), ("time", "3 s, 20 M weights/s")],
        "worst": [ErrorRow(EXPERT.format(2, 0, "w1"), "nl4:32", 0.00502, 0.0051, 0.95)],
    }
    draw(path, **(given | changes))
    return path.read_bytes()


class Page(HTMLParser):
    """What a browser would find in a page."""

    def __init__(self, content: bytes) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(content.decode("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_map_has_a_row_a_layer_and_a_panel_a_matrix() -> None:
    grid = ErrorGrid.of(errors_of(3, 12) | {"lm_head": 4e-5})
    assert grid.layers == (0, 1, 2)
    assert [panel.title for panel in grid.panels] == ["attention", "w1 (gate)", "w2 (down)", "w3 (up)"]
    assert grid.panels[0].columns == ("q", "k", "v", "o")
    assert grid.panels[2].columns == tuple(map(str, range(12)))
    assert [row[3] for row in grid.panels[2].values] == [0.005, 0.00501, 0.00502]
    assert grid.others == (("lm_head", 4e-5),)
    assert not grid.is_missing()


def test_8_bits_do_not_take_the_colours_from_the_rest() -> None:
    grid = ErrorGrid.of(errors_of(3, 4))
    low, high = grid.bounds()
    assert (low, high) == (0.004, 0.00502)
    assert grid.is_below(low)
    only = ErrorGrid.of({ATTENTION.format(0, "q"): 4e-5, ATTENTION.format(0, "k"): 5e-5})
    assert only.bounds() == (4e-5, 5e-5)
    assert only.is_missing()


@pytest.mark.parametrize("value", [0.0, 0.005])
def test_errors_that_are_all_alike_have_bounds_too(value: float) -> None:
    low, high = ErrorGrid.of({ATTENTION.format(0, "q"): value}).bounds()
    assert 0 < low < high


def test_names_that_are_none_make_no_map() -> None:
    names = [EXPERT.format(10**6, 0, "w1"), EXPERT.format(0, 1024, "w1"), ATTENTION.format(9999, "q"), EVIL, ""]
    grid = ErrorGrid.of(dict.fromkeys(names, 0.1) | {ATTENTION.format(0, "q"): math.nan})
    assert grid.panels == ()
    assert len(grid.others) == 6


@needs_matplotlib
@pytest.mark.parametrize(("layers", "experts"), [(1, 1), (3, 4), (200, 2), (2, 160)])
def test_a_picture_of_any_shape(layers: int, experts: int, tmp_path: Path) -> None:
    content = drawn(tmp_path / "report.png", errors=errors_of(layers, experts))
    assert content.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", content[16:24])
    assert 1500 < width < 2500
    assert 700 < height < 2500
    assert [path.name for path in tmp_path.iterdir()] == ["report.png"]


@needs_matplotlib
def test_a_page_loads_nothing_and_runs_nothing(tmp_path: Path) -> None:
    content = drawn(tmp_path / "report.html")
    page = Page(content)
    assert not {"script", "img", "link", "iframe", "object", "base", "form"} & set(page.tags)
    assert "svg" in page.tags
    for name, value in page.attributes:
        assert not name.startswith("on")
        if name in ("src", "href", "xlink:href"):
            assert value.startswith(("#", "data:image/png;base64,")), value[:80]
    assert not re.search(rb"url\((?!#)|@import", content)
    assert b"default-src 'none'" in content
    for text in ("model-nl4", "model, bfloat16", "20 M weights/s", "558,000", "0.00502", EXPERT.format(2, 0, "w1")):
        assert text in page.text


@needs_matplotlib
@pytest.mark.parametrize("suffix", ["png", "html"])
def test_names_are_text_and_never_markup(suffix: str, tmp_path: Path) -> None:
    content = drawn(
        tmp_path / f"report.{suffix}",
        title=EVIL,
        errors=errors_of(2, 2) | {EVIL: 0.5},
        facts=[(EVIL, EVIL), ("long", "x" * 5000)],
        worst=[ErrorRow(EVIL * 3, EVIL, 0.5, 0.6, None)],
        sizes=SizeTable((SizeRow(EVIL, EVIL, 1, 0, 100),), 100, 200) if suffix == "png" else SIZES,
    )
    if suffix == "html":
        page = Page(content)
        assert page.text.count("<script>alert(1)</script>") >= 4
        assert not {"script", "img"} & set(page.tags)
        assert page.tags.count("svg") == 1
        assert b"\x1b" not in content


@needs_matplotlib
@pytest.mark.parametrize("suffix", ["png", "html"])
def test_the_same_report_is_the_same_file(suffix: str, tmp_path: Path) -> None:
    assert drawn(tmp_path / f"a.{suffix}") == drawn(tmp_path / f"b.{suffix}")


@needs_matplotlib
@pytest.mark.parametrize("write", [write_tiny_mixtral, write_tiny_mistral])
@pytest.mark.parametrize("format", ["nl4", "w4", "bf16"])
def test_a_report_of_a_job(write: Any, format: str, tmp_path: Path) -> None:
    write(tmp_path / "source")
    result = quantize(tmp_path / "source", tmp_path / "out", format=format)
    errors = Manifest.read(tmp_path / "out").errors
    for suffix in ("png", "HTML"):
        path = tmp_path / f"report.{suffix}"
        assert drawn(path, errors=errors, sizes=result.sizes, worst=result.errors.worst)


@needs_matplotlib
def test_files_that_cannot_be_drawn_into_are_refused_before_the_job(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"\.html or \.png file, not 'report\.pdf'"):
        check_figure(tmp_path / "report.pdf")
    with pytest.raises(UsageError, match="there is no folder"):
        check_figure(tmp_path / "none" / "report.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(UsageError, match="is a folder"):
        check_figure(tmp_path / "folder.png")
    check_figure(tmp_path / "report.HTML")


def test_without_matplotlib_the_user_is_told_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="needs matplotlib") as error:
        check_figure(tmp_path / "report.png")
    assert "pip install matplotlib" in str(error.value.hint)


@needs_matplotlib
def test_what_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(StorageError, match="does not fit"):
        drawn(tmp_path / "report.png")
    assert list(tmp_path.iterdir()) == []
