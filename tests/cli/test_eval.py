"""`mixq eval ppl`: its output; the figures themselves are tested in tests/measure/test_perplexity.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import RunCli


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("The quick brown fox jumps over the lazy dog. " * 4, encoding="utf-8")
    return path


def test_figures_with_and_without_a_reference(cli: RunCli, quantized: Path, tiny: Path, text: Path) -> None:
    alone = cli("eval", "ppl", quantized, "--text", text)
    assert alone.code == 0
    assert alone.out.startswith("perplexity ")
    assert "KL" not in alone.out
    both = cli("eval", "ppl", quantized, "--text", text, "--reference", tiny)
    assert both.code == 0
    assert "KL divergence" in both.out
    assert "same top token" in both.out


def test_json(cli: RunCli, quantized: Path, tiny: Path, text: Path) -> None:
    outcome = cli("eval", "ppl", quantized, "--text", text, "--reference", tiny, "--window", "16", "--json")
    document = json.loads(outcome.out)
    assert outcome.code == 0
    assert document["window_tokens"] == 16
    assert document["perplexity"] > 1
    assert 0 <= document["comparison"]["top1_agreement"] <= 1


def test_seed_is_one_of_its_shared_flags(cli: RunCli, quantized: Path, text: Path) -> None:
    assert cli("eval", "ppl", quantized, "--text", text, "--seed", "5").code == 0
    refused = cli("eval", "ppl", quantized, "--text", text, "--seed", "-1")
    assert refused.code == 2
    assert "seed is -1" in refused.err


@pytest.mark.parametrize(
    ("content", "flags", "words"),
    [
        (b"", (), "The text is empty"),
        (b"caf\xe9", (), "not UTF-8"),
        (b"some text", ("--window", "1"), "must be from 2 to the context"),
        (b"some text", ("--window", "5000"), "must be from 2 to the context"),
        (b"some text", ("--tokens", "0"), "it must be 1 or more"),
    ],
)
def test_what_is_refused(
    cli: RunCli, quantized: Path, tmp_path: Path, content: bytes, flags: tuple[str], words: str
) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    outcome = cli("eval", "ppl", quantized, "--text", path, *flags)
    assert (outcome.code, outcome.out) == (2, "")
    assert words in outcome.err
