"""`mixq run`: prompts from everywhere, answers exact, one JSON document."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

import mixq
from mixq.cli import output
from tests.cli.conftest import RunCli

GREEDY = ("--temperature", "0", "--max-tokens", "8")


@pytest.fixture(scope="module")
def expected(quantized: Path) -> mixq.Done:
    model = mixq.load(quantized)
    return model.chat([{"role": "user", "content": "Hello"}], stream=False, temperature=0, max_tokens=8)


def test_answer_goes_to_stdout_and_figures_to_stderr(cli: RunCli, quantized: Path, expected: mixq.Done) -> None:
    outcome = cli("run", quantized, "-p", "Hello", *GREEDY)
    assert (outcome.code, outcome.out) == (0, expected.text + "\n")
    assert "8 out" in outcome.err
    assert cli("run", quantized, "-p", "Hello", *GREEDY, "--quiet").err == ""


@pytest.mark.parametrize("arguments", [("-p", "-"), ()], ids=["dash", "pipe"])
def test_prompt_from_standard_input(cli: RunCli, quantized: Path, expected: mixq.Done, arguments: tuple[str]) -> None:
    outcome = cli("run", quantized, *arguments, *GREEDY, stdin=b"\xef\xbb\xbfHello\n")
    assert (outcome.code, outcome.out) == (0, expected.text + "\n")


def test_json_is_one_document_and_nothing_else(cli: RunCli, quantized: Path, expected: mixq.Done) -> None:
    outcome = cli("run", quantized, "-p", "Hello", *GREEDY, "--json")
    document = json.loads(outcome.out)
    assert document["text"] == expected.text
    assert document["token_ids"] == list(expected.token_ids)
    assert document["finish_reason"] == "length"
    assert document["stats"]["prompt_tokens"] == expected.stats.prompt_tokens
    assert outcome.err == ""


def test_raw_goes_on_from_the_text(cli: RunCli, quantized: Path, expected: mixq.Done) -> None:
    model = mixq.load(quantized)
    continued = model.generate("Hello", stream=False, temperature=0, max_tokens=8)
    assert cli("run", quantized, "-p", "Hello", "--raw", *GREEDY).out == continued.text + "\n"
    assert continued.text != expected.text


def test_system_text_reaches_the_model(cli: RunCli, quantized: Path) -> None:
    model = mixq.load(quantized)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    done = model.chat(messages, stream=False, temperature=0, max_tokens=8)
    assert cli("run", quantized, "-p", "Hello", "--system", "Be brief.", *GREEDY).out == done.text + "\n"
    assert cli("run", quantized, "-p", "Hello", "--system", "Be brief.", "--raw").code == 2


def test_same_seed_same_text(cli: RunCli, quantized: Path) -> None:
    flags = ("--temperature", "2", "--max-tokens", "8", "--seed", "5")
    first = cli("run", quantized, "-p", "Hello", *flags).out
    assert cli("run", quantized, "-p", "Hello", *flags).out == first
    assert cli("run", quantized, "-p", "Hello", *flags[:-1], "6").out != first


def test_stop_text_ends_the_answer(cli: RunCli, quantized: Path, expected: mixq.Done) -> None:
    stop = expected.text[len(expected.text) // 2 :]
    outcome = cli("run", quantized, "-p", "Hello", *GREEDY, "--stop", "never", "--stop", stop, "--json")
    document = json.loads(outcome.out)
    assert (document["text"], document["finish_reason"]) == (expected.text.partition(stop)[0], "stop")


@pytest.mark.parametrize(
    ("arguments", "stdin", "words"),
    [
        (("-p", ""), b"", "The prompt is empty"),
        (("-p", " \n"), b"", "The prompt is empty"),
        ((), b"", "The prompt is empty"),
        ((), b"caf\xe9", "not UTF-8 text: byte 0xe9 at 3"),
        (("-p", "word " * 1000), b"", "the context holds 512"),
        (("-p", "hi", "--temperature", "-1"), b"", "temperature is -1.0"),
        (("-p", "hi", "--top-p", "1.5"), b"", "top_p is 1.5"),
        (("-p", "hi", "--stop", ""), b"", "stop"),
    ],
)
def test_prompt_or_flag_that_is_refused(
    cli: RunCli, quantized: Path, arguments: tuple[str, ...], stdin: bytes, words: str
) -> None:
    outcome = cli("run", quantized, *arguments, stdin=stdin)
    assert (outcome.code, outcome.out) == (2, "")
    assert words in outcome.err


def test_folder_without_a_tokenizer_says_what_is_missing(cli: RunCli, quantized: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for path in quantized.iterdir():
        if path.name != "tokenizer.model":
            (bare / path.name).symlink_to(path)
    outcome = cli("run", bare, "-p", "hi")
    assert outcome.code == 2
    assert "no tokenizer.model" in outcome.err


def test_flag_without_effect_is_said(cli: RunCli, quantized: Path) -> None:
    outcome = cli("run", quantized, "-p", "Hello", *GREEDY, "--context", "4096")
    assert outcome.code == 0
    assert "context 4096 is more than the model's maximum; it is 512" in outcome.err


HOSTILE = "a\x1b[2Jb\x1b]0;owned\x07c\rd\x9b31me\u202egnp\x00\x7f\tok\nfin 👩‍👧 שלום"


def test_terminal_shows_control_sequences_instead_of_obeying(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    output.model_text(HOSTILE)
    shown = capsys.readouterr().out
    assert shown == r"a\x1b[2Jb\x1b]0;owned\x07c\rd\x9b31me\u202egnp\x00\x7f" + "\tok\nfin 👩‍👧 שלום"


def test_file_or_pipe_gets_the_exact_text(capsys: pytest.CaptureFixture[str]) -> None:
    output.model_text(HOSTILE)
    assert capsys.readouterr().out == HOSTILE


def test_a_base_model_goes_on_from_the_text(cli: RunCli, tiny: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny, base)
    (base / "tokenizer_config.json").unlink()
    outcome = cli("run", base, "-p", "Once", "--temperature", 0, "--max-tokens", 3)
    raw = cli("run", tiny, "-p", "Once", "--raw", "--temperature", 0, "--max-tokens", 3)
    assert (outcome.code, outcome.out) == (0, raw.out)
    assert "No chat template: it has no chat template" in outcome.err
    assert cli("run", base, "-p", "Once", "--system", "Be brief.").code == 2
    forced = cli("run", base, "-p", "Once", "--template", "mistral-v1", "--temperature", 0, "--max-tokens", 3)
    assert forced.out == cli("run", tiny, "-p", "Once", "--temperature", 0, "--max-tokens", 3).out
    refused = cli("run", base, "-p", "Once", "--template", "mistral-v4")
    assert (refused.code, "Did you mean 'mistral-v" in refused.err) == (2, True)
