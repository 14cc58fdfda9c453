"""What is shown of a model: how far its loading is, and what lies where."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import mixq
from mixq.engine import progress
from mixq.engine.progress import TextProgress
from mixq.errors import UsageError
from mixq.experts.policies import Lru
from mixq.quantize import quantize
from tests.checkpoints import write_tiny_mixtral


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models")
    write_tiny_mixtral(path / "source", ffn=128, layers=3, vocab=100, tokenizer=False)
    quantize(path / "source", path / "nl4")
    return path / "nl4"


def test_a_model_shows_its_plan(tiny: Path) -> None:
    model = mixq.load(tiny, device="cpu")
    assert "3 layers, 4 experts" in repr(model)
    assert "on cpu>" in repr(model)
    page = model._repr_html_()
    assert "mapped from the disk" in page
    model = mixq.load(tiny, device="sim", vram="8MB", context=64, cache_policy=Lru)
    assert model.placement.offload is not None
    model.placement.offload.resize([2] * 3)
    assert "on sim, 12 expert slots>" in repr(model)
    page = model._repr_html_()
    assert "6 of 12 in slots on sim (2 in 3 layers; Lru)" in page
    assert "8.0 MB" in page
    for name in ("trunk", "KV cache", "workspace"):
        assert name in page


def test_what_a_notebook_shows_is_escaped(tmp_path: Path) -> None:
    folder = tmp_path / "<img src=x onerror=alert(1)>&\x1b[31m"
    write_tiny_mixtral(folder)
    page = mixq.load(folder, device="cpu")._repr_html_()
    assert "<img" not in page
    assert "\x1b" not in page
    assert "&lt;img src=x" in page


def test_loading_says_how_far_it_is_to_those_who_ask(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told: list[tuple[str, float]] = []
    mixq.load(tiny, device="sim", vram="8MB", context=64, progress=lambda what, share: told.append((what, share)))
    assert list(dict.fromkeys(what for what, _ in told)) == ["trunk", "experts into slots", ""]
    assert [share for what, share in told if what == "trunk"][-1] == 1.0
    assert all(0 <= share <= 1 for _, share in told)
    mixq.load(tiny, device="sim", vram="8MB", context=64)
    assert capsys.readouterr() == ("", "")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    monkeypatch.setattr(progress, "EVERY", 0.0)
    return


@pytest.mark.usefixtures("impatient")
def test_a_notebook_is_told_and_a_script_is_not(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(**options: Any) -> str:
        mixq.load(tiny, device="sim", vram="8MB", context=64, **options)
        out, err = capsys.readouterr()
        assert out == ""
        return err

    assert said() == ""
    assert "nl4: trunk 100%" in said(progress=True)
    monkeypatch.setitem(sys.modules, "ipykernel", io)
    assert said().rstrip(" \n").endswith("\rnl4: loaded")
    assert said(progress=False) == ""


def test_quick_loads_say_nothing_and_long_ones_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    out = io.StringIO()
    line = TextProgress("mixtral\x1b", patience=1.0, out=out)
    for clock[0], share in ((0.5, 0.1), (1.1, 0.3), (1.15, 0.4), (1.9, 0.9)):
        line("experts", share)
    line("", 1.0)
    written = out.getvalue()
    assert written.split("\r") == [
        "",
        "mixtral\\x1b: experts 30%",
        "mixtral\\x1b: experts 90%",
        "mixtral\\x1b: loaded     \n",
    ]
    clock[0] = 5.0
    line("weights", 0.5)
    line("", 0.0)
    assert out.getvalue().endswith("\rmixtral\\x1b: weights 50%\rmixtral\\x1b: not loaded \n")
    silent = io.StringIO()
    TextProgress("m", patience=9.0, out=silent)("", 1.0)
    assert silent.getvalue() == ""


def test_progress_must_be_something_to_call(tiny: Path) -> None:
    with pytest.raises(UsageError, match="progress is 'yes'"):
        mixq.load(tiny, progress="yes")  # type: ignore[arg-type]
