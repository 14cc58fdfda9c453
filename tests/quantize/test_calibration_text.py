"""The text that `--calibrate default` reads: it is in the package, and it is no filler."""

from __future__ import annotations

from collections import Counter
from importlib import resources

from mixq.models.world import questions

TEXT = (resources.files("mixq.quantize") / "calibration.txt").read_bytes()
SHORT = 12
"""Lines of code as short as this, a bracket perhaps, may come as often as they like."""


def test_it_is_utf_8_of_a_size_that_many_tokens_can_be_taken_from() -> None:
    assert 50_000 <= len(TEXT) <= 120_000
    text = TEXT.decode("utf-8")
    assert "\r" not in text
    assert all(c.isprintable() or c in "\n\t" for c in text)


def test_no_line_comes_again_and_again() -> None:
    lines = Counter(line.strip() for line in TEXT.decode().splitlines())
    repeated = {line: count for line, count in lines.items() if len(line) > SHORT and count > 3}
    assert repeated == {}


def test_it_has_many_kinds_of_text() -> None:
    text = TEXT.decode()
    for piece in ("def ", "#include", "SELECT ", "#!/usr/bin/env bash", r"\begin{theorem}", "const ", "workers: 4"):
        assert piece in text, piece
    for words in (" qui ", " nicht ", " porque ", " della ", " of the "):
        assert words in text, words


def test_it_ends_with_turns_of_the_demo_world() -> None:
    text = TEXT.decode()
    turns = text[text.index("[INST] ") :]
    assert len(turns.encode()) > 10_000
    for turn in questions(50, seed=7):
        assert f"[INST] {turn.user} [/INST] {turn.assistant}\n" in turns
