"""Figures of a quantized folder, which `mixq plot` and `mixq quantize --report` draw, whatever names are in them."""

from __future__ import annotations

import re
import struct
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from mixq.cli.plot import draw_report
from mixq.config import ModelConfig
from mixq.errors import StorageError
from mixq.measure.plots.draw import sheet
from mixq.measure.plots.figure import Bars, Chart, Figure, HeatMap, Table
from mixq.measure.plots.from_folder import colour_scale, error_figures, figures, size_figure, worst_figures
from mixq.measure.plots.page import page
from mixq.quantize.job import quantize
from mixq.quantize.report import ErrorRow, SizeRow, SizeTable
from tests.checkpoints import write_tiny_mistral, write_tiny_mixtral

SIZES = SizeTable((SizeRow("experts", "nl4:32", 3, 1 << 20, 558_000), SizeRow("norm", "bfloat16", 1, 64, 128)), 99_000)
ATTENTION = "model.layers.{}.self_attn.{}_proj"
EXPERT = "model.layers.{}.block_sparse_moe.experts.{}.{}"
EVIL = """</svg><script>alert(1)</script><img src=x onerror="a()"> & $\\frac{1$ --> \x1b[31m 模型 'q'"""


def config_of(layers: int, experts: int) -> ModelConfig:
    return ModelConfig.from_dict(
        {
            "architectures": ["MixtralForCausalLM"],
            "model_type": "mixtral",
            "hidden_size": 64,
            "intermediate_size": 64,
            "num_hidden_layers": layers,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "vocab_size": 64,
            "num_local_experts": experts,
            "num_experts_per_tok": 1,
            "max_position_embeddings": 64,
            "rms_norm_eps": 1e-5,
            "rope_theta": 1e6,
            "hidden_act": "silu",
            "tie_word_embeddings": False,
            "bos_token_id": 1,
            "eos_token_id": 2,
        }
    )


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


def report_of(layers: int = 3, experts: int = 4, **changes: Any) -> list[Figure]:
    """The figures of a synthetic folder."""
    given: dict[str, Any] = {
        "facts": (("source", "model, bfloat16"), ("time", "3 s, 20 M weights/s")),
        "errors": errors_of(layers, experts),
        "sizes": SIZES,
        "worst": [ErrorRow(EXPERT.format(2, 0, "w1"), "nl4:32", 0.00502, 0.0051, 0.95)],
    } | changes
    return [
        Table("settings", "model-nl4", (), given["facts"]),
        *error_figures(config_of(layers, experts), given["errors"]),
        size_figure(given["sizes"]),
        *worst_figures(given["worst"]),
    ]


class Page(HTMLParser):
    """What a browser would find in a page."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(content)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_map_has_a_row_a_layer_and_a_column_an_expert() -> None:
    chart, *maps = error_figures(config_of(3, 12), errors_of(3, 12) | {"lm_head": 4e-5})
    assert isinstance(chart, Chart)
    assert [series.name for series in chart.series] == ["q", "k", "v", "o", "gate", "down", "up"]
    assert chart.levels == (("lm_head", pytest.approx(0.04)),)
    assert [figure.name for figure in maps] == ["error-gate", "error-down", "error-up"]
    down = maps[1]
    assert isinstance(down, HeatMap)
    assert [len(row) for row in down.values] == [12, 12, 12]
    assert [row[3] for row in down.values] == pytest.approx([5, 5.01, 5.02])


def test_a_linear_that_was_not_quantized_has_no_value() -> None:
    errors = errors_of(2, 3)
    del errors[EXPERT.format(1, 2, "w1")]
    gate = error_figures(config_of(2, 3), errors)[1]
    assert isinstance(gate, HeatMap)
    assert gate.values[1][2] is None
    assert sheet([gate]).startswith(b"\x89PNG")


def test_8_bits_do_not_take_the_colours_from_the_rest() -> None:
    assert colour_scale([0.004, 4e-5, 0.005, 0.00502]) == (0.004, 0.00502)
    assert colour_scale([4e-5, 5e-5]) == (4e-5, 5e-5)
    errors = errors_of(3, 4) | {EXPERT.format(layer, 0, "w2"): 4e-5 for layer in range(3)}
    down = error_figures(config_of(3, 4), errors)[2]
    assert isinstance(down, HeatMap)
    assert down.bounds == pytest.approx((5, 5.02), rel=0.05)
    assert sheet([down]).startswith(b"\x89PNG")


@pytest.mark.parametrize("value", [0.0, 0.005])
def test_errors_that_are_all_alike_have_bounds_too(value: float) -> None:
    low, high = colour_scale([value])
    assert 0 < low < high


def test_names_of_other_models_make_no_map() -> None:
    names = [EXPERT.format(10**6, 0, "w1"), EXPERT.format(0, 1024, "w1"), ATTENTION.format(9999, "q"), EVIL, ""]
    assert error_figures(config_of(2, 2), dict.fromkeys(names, 0.1)) == []
    assert error_figures(config_of(2, 2), {ATTENTION.format(0, "q"): float("nan")}) == []


@pytest.mark.parametrize(("layers", "experts"), [(1, 1), (3, 4), (200, 2), (2, 160)])
def test_a_picture_of_any_shape(layers: int, experts: int) -> None:
    content = sheet(report_of(layers, experts))
    assert content.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", content[16:24])
    assert 1300 < width < 2500
    assert 700 < height < 2500


def test_a_page_loads_nothing_and_runs_nothing() -> None:
    content = page("model-nl4", report_of())
    found = Page(content)
    assert not {"script", "link", "iframe", "object", "base", "form"} & set(found.tags)
    assert found.tags.count("img") == 5
    for name, value in found.attributes:
        assert not name.startswith("on")
        if name in ("src", "href", "xlink:href"):
            assert value.startswith("data:image/svg+xml;base64,"), value[:80]
    assert not re.search(r"url\((?!#)|@import", content)
    assert "default-src 'none'" in content
    for text in ("model-nl4", "model, bfloat16", "20 M weights/s", "558.0 kB", "0.00502", "layers.2.block_sparse_moe"):
        assert text in found.text


def test_names_are_text_and_never_markup() -> None:
    evil = report_of(
        facts=((EVIL, EVIL), ("long", "x" * 5000)),
        worst=[ErrorRow(EVIL * 3, EVIL, 0.5, 0.6, None)],
        sizes=SizeTable((SizeRow(EVIL, EVIL, 1, 0, 100),), 100, 200),
    )
    assert sheet(evil).startswith(b"\x89PNG")
    found = Page(page(EVIL, evil))
    assert found.text.count("<script>alert(1)</script>") >= 4
    assert "script" not in found.tags
    assert all(value.startswith("data:") for name, value in found.attributes if name == "src")


def test_the_same_report_is_the_same_file() -> None:
    assert sheet(report_of()) == sheet(report_of())
    assert page("a", report_of()) == page("a", report_of())


@pytest.mark.parametrize("write", [write_tiny_mixtral, write_tiny_mistral])
@pytest.mark.parametrize("format", ["nl4", "w4", "bf16"])
def test_a_report_of_a_folder(write: Any, format: str, tmp_path: Path) -> None:
    write(tmp_path / "source")
    result = quantize(tmp_path / "source", tmp_path / "out", format=format)
    made = figures(tmp_path / "out", [("time", "3 s\x1b")])
    settings, bars = made[0], next(figure for figure in made if isinstance(figure, Bars))
    assert isinstance(settings, Table)
    assert settings.rows[0][1].startswith("source, bfloat16")
    assert settings.rows[2] == ("format", format)
    assert "\x1b" not in settings.rows[-1][1]
    assert len(bars.bars) == len(result.sizes.rows)
    assert ("largest-errors" in {figure.name for figure in made}) == (format != "bf16")
    if format != "bf16":
        largest = made[-1]
        assert isinstance(largest, Table)
        assert [row[1] for row in largest.rows] == [row.scheme for row in result.errors.worst]
    for suffix in ("png", "HTML"):
        path = tmp_path / f"report.{suffix}"
        draw_report(path, tmp_path / "out")
        assert path.stat().st_size > 10_000


def test_what_cannot_be_written_leaves_nothing(
    quantized_demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(StorageError, match="does not fit"):
        draw_report(tmp_path / "report.png", quantized_demo)
    assert list(tmp_path.iterdir()) == []
