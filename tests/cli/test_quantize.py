"""`mixq quantize`: what it says before, while and after; what it leaves when interrupted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from mixq.quantize.events import Event, ShardDone
from mixq.quantize.job import Job
from mixq.system import paths
from tests.cli.conftest import RunCli


def test_report_goes_to_stdout_and_progress_to_stderr_in_plain_lines(cli: RunCli, tiny: Path, tmp_path: Path) -> None:
    outcome = cli("quantize", tiny, tmp_path / "out")
    assert outcome.code == 0
    for words in ("nl4:32", "w8:128", "bits/weight", "mean relative squared error", "x normal", "Done: "):
        assert words in outcome.out
    assert "quantizing: 100 %" in outcome.err
    assert "\x1b" not in outcome.err + outcome.out
    assert cli("verify", tmp_path / "out").code == 0


def test_json_is_one_document(cli: RunCli, tiny: Path, tmp_path: Path) -> None:
    outcome = cli("quantize", tiny, tmp_path / "out", "--format", "w8", "--json")
    document = json.loads(outcome.out)
    assert (outcome.code, document["format"], document["already_done"]) == (0, "w8", False)
    assert document["errors"]["worst"]
    again = json.loads(cli("quantize", tiny, tmp_path / "out", "--format", "w8", "--json").out)
    assert again["already_done"] is True


def test_dry_run_writes_nothing(cli: RunCli, tiny: Path, tmp_path: Path) -> None:
    outcome = cli("quantize", tiny, tmp_path / "out", "--dry-run", "--mix", "all-nl4")
    assert outcome.code == 0
    assert "nothing written" in outcome.out
    assert "disk needed:" in outcome.out
    assert list(tmp_path.iterdir()) == []
    document = json.loads(cli("quantize", tiny, tmp_path / "out", "--dry-run", "--json").out)
    assert document["disk_needed"] > document["sizes"]["nbytes"]


def test_target_left_out_is_the_store(cli: RunCli, tiny: Path) -> None:
    assert cli("quantize", tiny, "--format", "w4").code == 0
    assert (paths.store() / "tiny-w4" / "config.json").is_file()
    assert cli("show", "tiny-w4").code == 0


def test_interrupted_job_says_so_and_goes_on(
    cli: RunCli, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Job.run

    def interrupted(self: Job) -> Iterator[Event]:
        for event in whole(self):
            yield event
            if isinstance(event, ShardDone):
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Job, "run", interrupted)
        outcome = cli("quantize", tiny, tmp_path / "out")
    assert (outcome.code, outcome.out) == (130, "")
    assert "run the same command again" in outcome.err
    assert cli("verify", tmp_path / "out").code == 3
    assert cli("quantize", tiny, tmp_path / "out", "--format", "w8").code == 2
    outcome = cli("quantize", tiny, tmp_path / "out")
    assert outcome.code == 0
    assert "resuming an interrupted job: 1 of 3 shards" in outcome.err
    assert cli("verify", tmp_path / "out").code == 0


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--format", "nl5"), "Did you mean 'nl4'"),
        (("--group", "48"), "choose from 16, 32, 64"),
        (("--mix", "expert=w8"), "Did you mean 'experts'"),
        (("--mix", "experts=w9"), "choose from nl4, w4, w8, nf4"),
    ],
)
def test_settings_that_are_refused(cli: RunCli, tiny: Path, tmp_path: Path, flags: tuple[str], words: str) -> None:
    outcome = cli("quantize", tiny, tmp_path / "out", *flags)
    assert (outcome.code, outcome.out) == (2, "")
    assert words in outcome.err
    assert list(tmp_path.iterdir()) == []


def test_source_that_is_quantized_already(cli: RunCli, quantized: Path, tmp_path: Path) -> None:
    outcome = cli("quantize", quantized, tmp_path / "out")
    assert outcome.code == 3
    assert "quantized already" in outcome.err
