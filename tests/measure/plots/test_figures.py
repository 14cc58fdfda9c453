"""Figures have the numbers of what they are made from, and are drawn whole."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from mixq.errors import ModelFileError
from mixq.measure.plots import from_bench, from_folder, from_recording, from_replay
from mixq.measure.plots.draw import picture, sheet
from mixq.measure.plots.figure import Bars, Chart, Figure, HeatMap, Series, Table, by_size
from mixq.measure.plots.page import page
from mixq.measure.speed.compare import Measured
from mixq.plan.recording import Facts, PromptFacts, Recording


def recording(T: int = 12, L: int = 3, E: int = 4, *, model: str = "m") -> Recording:
    """Two experts a token: the token's number and the next one, in every layer; half of them predicted."""
    first = np.arange(T)[:, None] + np.zeros(L, dtype=int)
    experts = np.stack([first % E, (first + 1) % E], axis=2).astype(np.uint8)
    predicted = np.full((T, 1, L, 2), 255, dtype=np.uint8)
    predicted[:, 0, 1:] = np.stack([first[:, 1:] % E, (first[:, 1:] + 2) % E], axis=2)
    is_prompt = np.zeros(T, dtype=bool)
    is_prompt[:2] = True
    return Recording(
        facts=Facts(model, L, E, 2, lookahead=1, prompts=(PromptFacts("p", 2, T - 2),)),
        experts=experts,
        weights=np.full((T, L, 2), 0.5, dtype=np.float16),
        predicted=predicted,
        tokens=np.zeros(T, dtype=np.int32),
        prompt=np.zeros(T, dtype=np.int32),
        is_prompt=is_prompt,
        seconds=np.zeros(T, dtype=np.float32),
    )


def named(figures: list[Figure]) -> dict[str, Figure]:
    return {figure.name: figure for figure in figures}


def test_a_recordings_figures() -> None:
    found = named(from_recording.figures(recording()))
    assert list(found) == ["expert-use", "expert-reuse", "hit-rates", "recall"]
    use, reuse, hits, recall = found.values()
    assert isinstance(use, HeatMap)
    assert use.middle == 0.5
    assert np.array(use.values).shape == (4, 3)
    assert np.array(use.values).sum(axis=0) == pytest.approx([2, 2, 2])  # two experts a token
    assert isinstance(reuse, Chart)
    assert {y for _, y in reuse.series[0].points} == {0.5}  # one of the two was there
    assert reuse.levels == (("even routing", 0.5),)
    assert isinstance(hits, Chart)
    assert [series.name for series in hits.series] == ["lru", "lfu", "static", "belady"]
    assert all(series.points[0] == (0, 0) and series.points[-1] == (4, 1) for series in hits.series)
    assert isinstance(recall, Chart)
    assert recall.series[0].points == ((1, 0.5), (2, 0.5))  # layer 0 has no predictions


def test_prompts_do_not_count() -> None:
    alone = recording(T=3)
    with pytest.raises(ModelFileError, match="fewer than two tokens"):
        from_recording.figures(alone)


def test_a_benchs_figures() -> None:
    cpu = {"operations_per_token": 2e9, "read_per_token": 1e9, "bandwidth_bytes_per_second": 40e9}
    sim = {"plan": {"device": "sim", "vram_bytes": 2e9}}
    more = {"plan": {"device": "sim", "vram_bytes": 4e9}}
    lines = [
        Measured("m", "tg8", (speed,), facts) for speed, facts in ((20.0, cpu), (5.0, sim), (9.0, more), (7.0, sim))
    ]
    found = named(from_bench.figures(lines))
    assert list(found) == ["roofline", "speed-memory"]
    roofline, memory = found.values()
    assert isinstance(roofline, Chart)
    assert roofline.series[1].points == ((2.0, 40.0),)
    assert all(y <= x * 40 * (1 + 1e-9) for x, y in roofline.series[0].points)
    assert isinstance(memory, Chart)
    assert memory.x == "GPU memory, GB"
    assert memory.series[0].points == ((2.0, 6.0), (4.0, 9.0))
    assert from_bench.figures(lines[1:2]) == []


def test_a_replays_figures() -> None:
    row = {"policy": "lru", "quotas": "even", "miss": "auto", "vram": 4e9, "tokens_per_second": 9.0, "hit_rate": 0.5}
    content = {"combinations": [{**row, "vram": 8e9}, row], "hit_rate_by_slots": {}, "hardware": {"name": "a laptop"}}
    speed, hits = from_replay.figures(content, "replay.json")
    assert isinstance(speed, Chart)
    assert speed.series == (Series("lru, even, auto", ((4.0, 9.0), (8.0, 9.0))),)
    assert "a laptop" in speed.title
    assert isinstance(hits, Chart)
    assert hits.percent
    for bad in (float("nan"), -1, True, "9", None, 1e300):
        with pytest.raises(ModelFileError, match="combination 1: tokens_per_second"):
            from_replay.figures({**content, "combinations": [{**row, "tokens_per_second": bad}]}, "replay.json")


def test_a_folders_figure(quantized_demo: Path) -> None:
    found = named(from_folder.figures(quantized_demo))
    maps = ["error-gate", "error-down", "error-up"]
    assert list(found) == ["settings", "quantization-error", *maps, "size", "largest-errors"]
    figure = found["quantization-error"]
    assert isinstance(figure, Chart)
    errors = {series.name: series.points for series in figure.series}
    assert set(errors) == {"q", "k", "v", "o", "gate", "up", "down"}
    assert all(len(points) == 5 for points in errors.values())
    assert all(4.5 < y < 6.5 for _, y in errors["gate"])  # nl4 g32
    assert all(3 < y < 5 for _, y in errors["q"])  # nl4 g16


def test_a_fitting_unit() -> None:
    assert by_size("memory", {"a": [(2e9, 1), (1e6, 2)]})[0] == "memory, GB"
    axis, (series,) = by_size("memory", {"a": [(2e6, 1), (1e6, 2)]})
    assert (axis, series.points) == ("memory, MB", ((1.0, 2), (2.0, 1)))


HEAT = HeatMap("heat", "A map $x$", "expert", "layer", tuple(tuple(0.1 * i for _ in range(32)) for i in range(8)))
CHART = Chart(
    "chart",
    "A chart of $y$",
    "x",
    "y",
    tuple(Series(f"s{i}", ((0, i), (1, 2 * i))) for i in range(9)),
    levels=(("level", 3),),
)
LOG = Chart(
    "log", "A roof", "x", "y", (Series("a", ((1, 1), (10, 10))), Series("b", ((5, 2),), line=False)), logarithmic=True
)


BARS = Bars("bars", "Bars of $z$", "MB", (("a $x$", 2.0, "2 MB"), ("b", 0.5, "0.5 MB")))
TABLE = Table("table", "A table", ("name", "number"), (("a $x$", "1"), ("b" * 99, "2" * 99)))


@pytest.mark.parametrize("figure", [HEAT, CHART, LOG, BARS, TABLE], ids=lambda figure: figure.name)
def test_pictures(figure: Figure) -> None:
    assert picture(figure, "png").startswith(b"\x89PNG")
    drawn = picture(figure, "svg")
    assert drawn.startswith(b"<?xml")
    assert drawn == picture(figure, "svg")  # the same bytes each time


def test_a_sheet_of_all() -> None:
    assert sheet([HEAT, CHART, LOG, BARS, TABLE]).startswith(b"\x89PNG")


def test_a_page_needs_nothing_and_runs_nothing() -> None:
    evil = HeatMap('e"><script>', "<img src=x onerror=alert(1)>", "<b>", "</td>", ((1.0,),))
    text = page("<title>", [evil, CHART])
    assert "<script" not in text
    assert "<img src=x" not in text
    assert not re.search(r'(?:src|href)="(?!data:)', text)
    assert "default-src 'none'" in text
    assert text.count("<figure") == 2
    assert text.count('alt="') == 2
