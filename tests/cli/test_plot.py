"""`mixq plot`: in the terminal, as files, as a page, as numbers; and what cannot be drawn."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from mixq.cli.plot import check_report
from mixq.errors import MixqError, UsageError
from tests.cli.conftest import RunCli
from tests.measure.plots.test_figures import recording


@pytest.fixture
def run(tmp_path: Path) -> Path:
    path = tmp_path / "run.mqt"
    recording(model="\x1b[2J[red]model").write(path)
    return path


def test_in_the_terminal(cli: RunCli, run: Path) -> None:
    outcome = cli("plot", run)
    assert outcome.code == 0, outcome.err
    for words in ("Share of tokens routed to each expert", "even routing: 50 %", "belady", "1 ahead", "█"):
        assert words in outcome.out or words == "1 ahead"
    assert "\x1b" not in outcome.out
    assert max(len(line) for line in outcome.out.splitlines()) <= 80


def test_a_picture_of_each(cli: RunCli, run: Path, tmp_path: Path) -> None:
    outcome = cli("plot", run, "-o", tmp_path / "pictures", "--format", "svg")
    assert outcome.code == 0, outcome.err
    names = {path.name for path in (tmp_path / "pictures").iterdir()}
    assert names == {"expert-use.svg", "expert-reuse.svg", "hit-rates.svg", "recall.svg"}


def test_one_picture_of_all(cli: RunCli, run: Path, tmp_path: Path) -> None:
    assert cli("plot", run, run, "-o", tmp_path / "all.png").code == 0
    assert (tmp_path / "all.png").read_bytes().startswith(b"\x89PNG")
    assert cli("plot", run, "-o", tmp_path / "all.svg").code == 2
    assert cli("plot", run, "-o", tmp_path / "all.pdf").code == 2
    assert cli("plot", run, "--format", "pdf").code == 2


def test_a_page(cli: RunCli, run: Path, tmp_path: Path) -> None:
    assert cli("plot", run, "--html", tmp_path / "page.html").code == 0
    text = (tmp_path / "page.html").read_text()
    assert text.count("<figure") == 4
    assert "\x1b" not in text


def test_the_numbers(cli: RunCli, run: Path) -> None:
    outcome = cli("plot", run, "--json")
    assert outcome.code == 0, outcome.err
    figures = json.loads(outcome.out)["figures"]
    assert [figure["name"] for figure in figures] == ["expert-use", "expert-reuse", "hit-rates", "recall"]
    assert figures[0]["kind"] == "heat map"


def test_without_matplotlib_the_terminal_still_draws(
    cli: RunCli, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert cli("plot", run).code == 0
    outcome = cli("plot", run, "-o", tmp_path / "all.png")
    assert outcome.code == 1
    assert "pip install 'mixq[plots]'" in outcome.err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "has no results"),
        (b"PK\x03\x04 but no zip", "run"),
        (b"{\n", "line 1 is not JSON"),
        (b"\xff\xfe\x00", "is not JSON"),
        (b'{"combinations": 3, "hit_rate_by_slots": {}}', "combinations must be a list"),
        (b'{"combinations": [{}], "hit_rate_by_slots": {}}', "combination 1: vram is missing; it must be a number"),
        (b'{"combinations": [{"vram": NaN}], "hit_rate_by_slots": {}}', "combinations"),
        (
            b'{"model_filename": "m", "n_gen": 8, "samples_ts": [1, 2], "plan": {"vram_bytes": 1e99}}',
            "no figure to draw",
        ),
        (b'{"model_filename": "m", "n_gen": 8, "samples_ts": [1, 2]}', "no figure to draw"),
    ],
)
def test_files_that_cannot_be_drawn(cli: RunCli, tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "run"
    path.write_bytes(content)
    outcome = cli("plot", path)
    assert outcome.code == 3, outcome.err
    if words != "combinations":
        assert words in " ".join(outcome.err.split())


def test_folders_and_files_that_are_not_there(cli: RunCli, tmp_path: Path) -> None:
    outcome = cli("plot", tmp_path)
    assert outcome.code == 3
    assert "was not quantized by mixq" in outcome.err
    assert cli("plot", tmp_path / "none").code == 3


def test_files_that_no_report_can_be_drawn_into_are_refused_before_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match=r"\.html or \.png file, not 'report\.pdf'"):
        check_report(tmp_path / "report.pdf")
    with pytest.raises(UsageError, match="does not exist"):
        check_report(tmp_path / "none" / "report.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(UsageError, match="is a folder"):
        check_report(tmp_path / "folder.png")
    check_report(tmp_path / "report.HTML")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MixqError, match="need matplotlib") as error:
        check_report(tmp_path / "report.png")
    assert error.value.hint == "pip install 'mixq[plots]'"


def test_a_quantized_folder(cli: RunCli, quantized: Path, tmp_path: Path) -> None:
    outcome = cli("plot", quantized)
    assert outcome.code == 0, outcome.err
    for words in ("Settings of", "Quantization error by layer", "darkest", "Size:", "Largest errors"):
        assert words in outcome.out
    assert max(len(line) for line in outcome.out.splitlines()) <= 80
    assert cli("plot", quantized, "-o", tmp_path / "all.png").code == 0
    report = tmp_path / "report.png"
    assert cli("quantize", quantized.parent / "tiny", tmp_path / "out", "--report", report).code == 0
    assert report.read_bytes().startswith(b"\x89PNG")
