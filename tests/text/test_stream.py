"""Decoding a stream: characters when they are certain, and stop strings however the text is cut."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixq.errors import UsageError
from mixq.text.sentencepiece_tokenizer import SentencePieceTokenizer as Tokenizer
from mixq.text.stream import StopMatcher
from mixq.text.tokenizer import StreamDecoder
from tests.text.samples import SCRIPTS


def pushed(decoder: StreamDecoder, ids: list[int]) -> list[str]:
    return [*(decoder.push(i) for i in ids), decoder.flush()]


@pytest.mark.parametrize("script", SCRIPTS)
def test_stream_is_byte_exact(tokenizer: Tokenizer, script: str) -> None:
    text = SCRIPTS[script]
    for ids in (tokenizer.encode(text), [byte + 3 for byte in text.encode()]):  # 3 is the id of <0x00>
        parts = pushed(StreamDecoder(tokenizer), ids)
        assert "".join(parts) == text
        assert parts[-1] == ""
        assert not any("\ufffd" in part for part in parts)


def test_no_half_character_is_ever_given(tokenizer: Tokenizer) -> None:
    decoder = StreamDecoder(tokenizer)
    family = "👩‍👧"
    assert [decoder.push(byte + 3) for byte in family.encode()] == [
        "",
        "",
        "",
        "👩",
        "",
        "",
        "\u200d",
        "",
        "",
        "",
        "👧",
    ]


def test_text_ends_inside_a_character(tokenizer: Tokenizer) -> None:
    decoder = StreamDecoder(tokenizer)
    assert [decoder.push(byte + 3) for byte in "é👋".encode()[:-1]] == ["", "é", "", "", ""]
    assert decoder.flush() == "\ufffd" * 3
    assert decoder.flush() == ""


def test_broken_character_does_not_hold_back_what_follows(tokenizer: Tokenizer) -> None:
    decoder = StreamDecoder(tokenizer)
    assert decoder.push(0xE2 + 3) == ""
    word = tokenizer.encode("Hi")[0]
    assert decoder.push(word) == "\ufffd" + tokenizer.piece_bytes(word).decode()


@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_stream_equals_decoding_the_whole(tokenizer: Tokenizer, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.one_of(st.integers(0, tokenizer.vocab_size - 1), st.integers(3, 258)), max_size=40))
    strip = data.draw(st.booleans())
    parts = pushed(StreamDecoder(tokenizer, strip_leading_space=strip), ids)
    assert "".join(parts) == tokenizer.decode(ids, strip_leading_space=strip)


@pytest.mark.parametrize(
    ("stops", "text", "shown", "matched"),
    [
        (["\n\n"], "one\ntwo\n\nthree", "one\ntwo", "\n\n"),
        (["STOP"], "never", "never", None),
        (["STOP"], "ends in STO", "ends in STO", None),
        (["aab"], "aaab", "a", "aab"),
        (["abcd", "c"], "xabcd", "xab", "c"),
        (["cd", "abcd"], "xabcd", "x", "abcd"),
        (["User:"], "User:", "", "User:"),
        (["👋"], "hi 👋 there", "hi ", "👋"),
        ([], "anything", "anything", None),
    ],
)
def test_stop_strings(stops: list[str], text: str, shown: str, matched: str | None) -> None:
    for size in range(1, len(text) + 1):
        matcher = StopMatcher(stops)
        out = ""
        for begin in range(0, len(text), size):
            emitted, stopped = matcher.push(text[begin : begin + size])
            out += emitted
            if stopped:
                break
        assert (out + matcher.flush(), matcher.matched) == (shown, matched)


def test_only_what_could_become_a_stop_string_is_held_back() -> None:
    matcher = StopMatcher(["\nUser:"])
    assert matcher.push("Hello\nUs") == ("Hello", False)
    assert matcher.push("ed car") == ("\nUsed car", False)
    assert matcher.push("\n") == ("", False)
    assert matcher.flush() == "\n"


def test_text_after_a_stop_string_is_dropped() -> None:
    matcher = StopMatcher(["."])
    assert matcher.push("One. Two.") == ("One", True)
    assert matcher.push("Three") == ("", True)
    assert matcher.flush() == ""


small_text = st.text(alphabet="ab.", max_size=14)


@settings(deadline=None, max_examples=500)
@given(
    text=small_text,
    stops=st.lists(st.text(alphabet="ab.", min_size=1, max_size=4), max_size=3),
    cuts=st.lists(st.integers(0, 14)),
)
def test_stopping_does_not_depend_on_the_cuts(text: str, stops: list[str], cuts: list[int]) -> None:
    """Compared with the definition: the first place where a stop string is complete, the longest of those there."""
    expected = text
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            expected = text[: end - len(max(complete, key=len))]
            break
    matcher = StopMatcher(stops)
    edges = sorted({0, len(text), *(c for c in cuts if c < len(text))})
    out = "".join(matcher.push(text[a:b])[0] for a, b in itertools.pairwise(edges))
    assert out + matcher.flush() == expected


def test_empty_stop_string_is_refused() -> None:
    with pytest.raises(UsageError, match="empty"):
        StopMatcher(["ok", ""])
