"""`mixq list`, `mixq pull` and `mixq rm`, as a user types them, and their names completed by the shell."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mixq.cli import input as command_input
from mixq.cli.list_models import ago
from mixq.cli.pull import default_name
from mixq.formats import store
from mixq.system import paths
from tests.cli.conftest import RunCli
from tests.fake_hub import COMMIT, FakeHub, folder_contents

NAME = "some-one/Tiny-Mixtral"


@pytest.fixture
def hub(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with FakeHub({NAME: folder_contents(tiny)}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield hub


def shards_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


def interrupted(cli: RunCli, hub: FakeHub, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    """Pull until the second shard and stop there, as Ctrl-C does."""
    from mixq.quantize import job

    whole, done = job.ShardDone, []

    def stop(*fields: object) -> object:
        done.append(fields)
        if len(done) == 2:
            raise KeyboardInterrupt
        return whole(*fields)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(job, "ShardDone", stop)
        outcome = cli("pull", *arguments, "--yes")
    assert (outcome.code, "interrupted" in outcome.err) == (130, True)


def test_an_empty_store_says_what_to_do(cli: RunCli) -> None:
    outcome = cli("list")
    assert (outcome.code, outcome.out) == (0, "")
    assert "mixq pull" in outcome.err
    assert "mixq chat" in outcome.err
    assert json.loads(cli("list", "--json").out) == {"store": str(paths.store()), "models": []}


def test_a_repository_becomes_a_model(cli: RunCli, hub: FakeHub, quantized: Path) -> None:
    outcome = cli("pull", NAME, "--yes")
    assert outcome.code == 0, outcome.err
    assert "memory needed" in outcome.err
    assert "not stored" in outcome.err
    assert outcome.out.startswith("Done: tiny-mixtral, ")
    assert shards_of(paths.store() / "tiny-mixtral") == shards_of(quantized)
    listed = cli("list")
    assert (listed.code, listed.err) == (0, "")
    for words in ("tiny-mixtral", "nl4", "2 of 4", "512", NAME, "just now"):
        assert words in listed.out
    (model,) = json.loads(cli("list", "--json").out)["models"]
    assert (model["name"], model["state"], model["source"]["revision"]) == ("tiny-mixtral", "ready", COMMIT)
    asked = len(hub.requests)
    assert "already in the store" in cli("pull", "tiny-mixtral").err
    assert len(hub.requests) == asked
    again = cli("pull", NAME)
    assert (again.code, "already complete" in again.err) == (0, True)


def test_nothing_is_written_without_a_yes(cli: RunCli, hub: FakeHub) -> None:
    outcome = cli("pull", NAME)
    assert (outcome.code, "Pass --yes" in outcome.err) == (2, True)
    assert "disk needed" in outcome.err
    assert store.names() == []


@pytest.mark.parametrize(
    ("answer", "otherwise", "wanted"),
    [
        ("y\n", False, True),
        ("YES\n", False, True),
        ("\n", True, True),
        ("\n", False, False),
        ("no\n", True, False),
        ("", True, False),
        ("what\nn\n", True, False),
    ],
)
def test_answers_to_a_question(
    answer: str, otherwise: bool, wanted: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "input").write_text(answer)
    with (tmp_path / "input").open() as stream:
        monkeypatch.setattr(sys, "stdin", stream)
        monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
        assert command_input.confirm("Go on?", default=otherwise) is wanted


def test_dry_run(cli: RunCli, hub: FakeHub) -> None:
    outcome = cli("pull", NAME, "--format", "w4", "--dry-run")
    assert (outcome.code, "as w4: tiny-mixtral-w4" in outcome.out) == (0, True)
    document = json.loads(cli("pull", NAME, "--dry-run", "--json").out)
    assert (document["name"], document["bytes_to_fetch"]) == ("tiny-mixtral", document["sizes"]["source_bytes"])
    assert document["search_seconds"] > 0
    assert store.names() == []


def test_an_interrupted_pull_goes_on_by_its_name(
    cli: RunCli, hub: FakeHub, quantized: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(cli, hub, monkeypatch, NAME)
    listed = cli("list")
    assert "unfinished" in listed.out
    assert "tiny-mixtral is not finished: 2 of 3 shards exist.\nNext: mixq pull tiny-mixtral" in listed.err
    for command in ("show", "verify", "chat"):
        outcome = cli(command, "tiny-mixtral")
        assert (outcome.code, "not finished" in outcome.err) == (3, True), command
    finished = cli("pull", "tiny-mixtral")  # was agreed to before
    assert finished.code == 0, finished.err
    assert "2 of 3 shards are finished" in finished.err
    assert shards_of(paths.store() / "tiny-mixtral") == shards_of(quantized)
    assert cli("verify", "tiny-mixtral").code == 0


def test_an_interrupted_pull_keeps_its_settings_and_commit(
    cli: RunCli, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ("--format", "nl4", "--mix", "experts=nl4:16,o=w8", "--table", "fit", "--calibrate", "default")
    flags = (*flags, "--calibrate-tokens", "600")
    interrupted(cli, hub, monkeypatch, NAME, "mine", *flags)
    asked = len(hub.requests)
    assert cli("pull", "mine", "--json").code == 0
    assert any(f"/revision/{COMMIT}" in path for path, _, _ in hub.requests[asked:])
    settings = json.loads((paths.store() / "mine" / "mixq.json").read_text())["settings"]
    assert (settings["mix"]["w1"], settings["mix"]["o"], settings["table"]) == ("nl4:16", "w8:128", "fit")
    assert settings["calibrate"]["tokens"] == 600


def test_the_same_command_goes_on_with_the_commit_that_it_began(
    cli: RunCli, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(cli, hub, monkeypatch, NAME)
    asked = len(hub.requests)
    assert cli("pull", NAME).code == 0
    assert hub.requests[asked][0].startswith(f"/api/models/{NAME}/revision/{COMMIT}")  # the branch may have moved on


def test_other_settings_are_refused(cli: RunCli, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(cli, hub, monkeypatch, NAME)
    outcome = cli("pull", NAME, "tiny-mixtral", "--group", "64")
    assert (outcome.code, "started with the setting" in outcome.err) == (2, True)


def test_a_job_on_a_local_checkpoint_needs_its_source(
    cli: RunCli, hub: FakeHub, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(cli, hub, monkeypatch, tiny, "local")
    assert "the same mixq quantize or mixq pull command again" in cli("list").err
    outcome = cli("pull", "local")
    assert (outcome.code, "mixq pull SRC local" in outcome.err) == (2, True)
    assert cli("pull", tiny, "local").code == 0


def test_a_name_that_is_taken(cli: RunCli, hub: FakeHub, tiny: Path) -> None:
    assert cli("pull", tiny, "tiny-mixtral", "--yes").code == 0
    outcome = cli("pull", NAME, "--yes")
    assert outcome.code == 2
    assert f"taken by a model quantized from tiny, not from {NAME}" in outcome.err
    (paths.store() / "foreign").mkdir()
    (paths.store() / "foreign" / "notes.txt").write_text("mine")
    outcome = cli("pull", NAME, "foreign", "--yes")
    assert (outcome.code, "is taken" in outcome.err) == (2, True)
    outcome = cli("pull", NAME, "../elsewhere", "--yes")
    assert (outcome.code, "cannot be the name" in outcome.err) == (2, True)


def test_a_repository_that_has_moved_on(cli: RunCli, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli("pull", NAME, "--yes").code == 0
    monkeypatch.setattr("tests.fake_hub.COMMIT", "f" * 40)
    outcome = cli("pull", NAME)
    assert outcome.code == 2
    assert f"is made from commit {COMMIT[:11]}… of {NAME}; the hub now has fffffffffff…" in outcome.err


def test_no_network(cli: RunCli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert cli("pull", NAME, "--yes").code == 5
    assert store.names() == []


def test_removing(cli: RunCli, tiny: Path) -> None:
    for name in ("one", "two", "three"):
        assert cli("pull", tiny, name, "--yes").code == 0
    outcome = cli("rm", "one", "two")
    assert (outcome.code, "Pass --yes" in outcome.err) == (2, True)
    assert "two: " in outcome.err
    outcome = cli("rm", "one", "fuor", "--yes")
    assert (outcome.code, store.names()) == (3, ["one", "three", "two"])  # all are looked at first
    outcome = cli("rm", "one", "two", "one", "--yes")
    assert (outcome.code, outcome.out) == (0, "removed one\nremoved two\n")
    assert store.names() == ["three"]
    assert cli("rm", "../three", "--yes").code == 2
    removed = json.loads(cli("rm", "three", "--yes", "--json").out)["removed"]
    assert [model["name"] for model in removed] == ["three"]


def test_default_names(tmp_path: Path) -> None:
    assert default_name("mistralai/Mixtral-8x7B-Instruct-v0.1", "nl4") == "mixtral-8x7b-instruct-v0.1"
    assert default_name("mistralai/Mixtral-8x7B-v0.1", "w4") == "mixtral-8x7b-v0.1-w4"
    (tmp_path / "Mix.Q8_0-00001-of-00002.gguf").touch()
    assert default_name(str(tmp_path / "Mix.Q8_0-00001-of-00002.gguf"), "nl4") == "mix.q8_0"
    assert default_name(f"{tmp_path}/", "nl4") == tmp_path.name.lower()


def test_how_long_ago(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 1_000_000_000.0)
    found = [ago(1_000_000_000.0 - seconds) for seconds in (0, 61, 7200, 86400, 86400 * 400)]
    assert found == ["just now", "1 minute ago", "2 hours ago", "1 day ago", "1 year ago"]


@pytest.mark.parametrize("command", ["chat", "show", "verify", "rm", "pull", "quantize", "export", "eval ppl"])
def test_the_shell_completes_names(command: str, mixq_home: Path) -> None:
    for name in ("mixtral-a", "mixtral-b", "other"):
        (paths.store() / name).mkdir(parents=True)
    words = f"mixq {command} mix"
    environment = {
        **os.environ,
        "_MIXQ_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
    }
    program = "import sys; from mixq.cli.main import exit_code; exit_code([]); sys.exit('torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout.split()) == (0, ["mixtral-a", "mixtral-b"]), ran.stderr
