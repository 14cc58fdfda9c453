"""Figures in as many words as there is room for."""

from __future__ import annotations

import pytest
from rich.cells import cell_len

from mixq.chat import status
from mixq.chat.terminal import progress_line
from mixq.engine.events import Done, Stats
from mixq.experts.stats import ExpertCounters, ExpertStats

MODEL = {
    "model": "/m",
    "context": 8192,
    "vram_taken_bytes": 5_100_000_000,
    "vram_promised_bytes": 8 * 10**9,
    "last": None,
}


def done(used: int = 255) -> Done:
    experts = ExpertStats(ExpertCounters(requests=100, hits=87))
    return Done("stop", "x", (1,) * 97, Stats(38, 120, 0.1, 96, 8.0, 0.314, used, 8192, experts))


def test_all_figures_where_there_is_room() -> None:
    assert status.toolbar(done(), 255, MODEL, 26_100_000_000, 120) == (
        "380/s in · 12.0/s out · first 0.31 s · GPU 5.1 GB of 8.0 GB · RAM 26.1 GB · hits 87% · context 255/8192"
    )
    assert status.fitted(status.reply_parts(done()), 100) == (
        "38 tokens in (380/s) · 97 out (12.0/s) · first 0.31 s · hits 87% · context 255/8192"
    )


def test_less_room_says_it_shorter_then_less() -> None:
    at = {width: status.toolbar(done(), 255, MODEL, 26_100_000_000, width) for width in range(121)}
    assert at[79] == "in 380/s · out 12.0/s · 0.31 s · GPU 5.1 GB · RAM 26.1 GB · hits 87% · ctx 3%"
    assert at[40] == "out 12.0/s · hits 87% · ctx 3%"
    assert at[6] == "ctx 3%"
    assert at[5] == ""
    assert all(cell_len(line) <= width for width, line in at.items())


def test_before_the_first_reply() -> None:
    assert status.toolbar(None, 0, {"context": 64}, None, 80) == "context 0/64 · /help"


@pytest.mark.parametrize(("used", "words"), [(6000, None), (6600, "81% full: 1592 of 8192"), (8192, "100% full: 0 of")])
def test_context_that_fills_up_is_said_in_time(used: int, words: str | None) -> None:
    advice = status.context_advice(done(used).stats, 32768)
    assert (advice is None) if words is None else (advice is not None and words in advice)
    if advice is not None:
        assert "--context 16384" in advice
        assert "cannot be larger" in str(status.context_advice(done(used).stats, 8192))


def test_stats_name_what_was_cached() -> None:
    facts = dict(status.stats_facts(done(), MODEL, None))
    assert (facts["prompt tokens"], facts["of them cached"]) == ("158", "120")
    assert facts["experts"].startswith("87% hits")
    assert facts["vram taken"] == "5.1 GB"
    assert dict(status.stats_facts(None, MODEL, None))["last reply"] == "none yet"


def test_progress_fits_the_window() -> None:
    assert progress_line("reading", 512, 2048, 80) == "reading 512 of 2,048 tokens ━━━━━━──────────────────"
    assert progress_line("reading", 512, 2048, 30) == "512/2,048"
    assert progress_line("reading", 512, 2048, 80, unicode=False).endswith("######..................")
    assert all(len(progress_line("reading", 1, 2, width)) <= width for width in range(60))
