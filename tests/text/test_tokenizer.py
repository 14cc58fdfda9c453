"""mixq.text.tokenizer: ids of ordinary pieces only, decoding as sentencepiece does, files that are no model."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from mixq.errors import ModelFileError, UsageError
from mixq.text.sentencepiece_tokenizer import SentencePieceTokenizer as Tokenizer
from tests.text.samples import CONTROL_SPELLINGS, SCRIPTS


@pytest.mark.parametrize("text", [*SCRIPTS.values(), *CONTROL_SPELLINGS], ids=repr)
def test_text_comes_back_unchanged_and_holds_no_control_id(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert not {tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id} & set(ids)
    assert tokenizer.decode(ids) == text.replace("▁", " ")


@settings(deadline=None, max_examples=300)
@given(text=st.lists(st.sampled_from(["</s>", "<s>", "<", "/", "s", ">", "▁", " ", "<0x02>", "é", "👋"])).map("".join))
def test_no_arrangement_of_control_spellings_gives_a_control_id(tokenizer: Tokenizer, text: str) -> None:
    assert not any(tokenizer.is_control(i) for i in tokenizer.encode(text))


@settings(deadline=None, max_examples=500)
@given(data=st.data())
def test_decode_equals_sentencepiece_for_any_ids(tokenizer: Tokenizer, data: st.DataObject) -> None:
    """Half of the draws are byte pieces, so that broken UTF-8 is common."""
    any_id = st.one_of(st.integers(0, tokenizer.vocab_size - 1), st.integers(0, 260))
    ids = data.draw(st.lists(any_id, max_size=30))
    peer = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer.path))
    assert tokenizer.decode(ids) == peer.decode(ids)


def test_leading_space_is_kept_in_the_middle_of_a_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("world")
    assert tokenizer.decode(ids) == "world"
    assert tokenizer.decode(ids, strip_leading_space=False) == " world"


def test_pieces_of_mixtral(mixtral_tokenizer: Tokenizer) -> None:
    tokenizer = mixtral_tokenizer
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id) == (32000, 1, 2, 0)
    assert tokenizer.piece_bytes(3) == b"\x00"
    assert tokenizer.piece_bytes(258) == b"\xff"
    assert tokenizer.piece_bytes(15359) == b" Hi"
    assert tokenizer.piece_bytes(2) == b""


def test_lone_surrogates_become_replacement_characters(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode("a\ud800b\udfff")) == "a\ufffdb\ufffd"


def test_id_outside_of_the_vocabulary_is_refused(tokenizer: Tokenizer) -> None:
    for bad in (-1, tokenizer.vocab_size):
        with pytest.raises(UsageError, match=f"vocabulary of {tokenizer.vocab_size}"):
            tokenizer.piece_bytes(bad)


def test_long_texts_take_linear_time(tokenizer: Tokenizer) -> None:
    """A word without an end is the worst case of merging; a quadratic algorithm would take hours."""
    seed = 20240
    print("seed", seed)
    word = "".join(random.Random(seed).choices("abcdefghij", k=1_000_000))
    for text in (word, "e\u0301" * 200_000):
        begun = time.perf_counter()
        assert tokenizer.encode(text)
        assert time.perf_counter() - begun < 600


@pytest.mark.parametrize(
    "content", [b"", b"garbage" * 100, b'{"model": "tokenizer.json"}'], ids=["empty", "bytes", "json"]
)
def test_file_that_is_no_sentencepiece_model(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match="is not a sentencepiece model"):
        Tokenizer(path)


def test_truncated_file(tmp_path: Path, mixtral_tokenizer_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(mixtral_tokenizer_path.read_bytes()[:100_000])
    with pytest.raises(ModelFileError, match="is not a sentencepiece model"):
        Tokenizer(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="does not exist"):
        Tokenizer(tmp_path / "tokenizer.model")


def test_model_whose_end_token_text_could_spell_is_refused(tmp_path: Path, mixtral_tokenizer_path: Path) -> None:
    """With </s> as a user-defined piece, a user who types it would end the turn."""
    piece = b"\x0a\x04</s>\x15\x00\x00\x00\x00\x18"  # ModelProto.SentencePiece: piece, score, then type: 3 is control
    data = mixtral_tokenizer_path.read_bytes()
    assert data.count(piece + b"\x03") == 1
    path = tmp_path / "tokenizer.model"
    path.write_bytes(data.replace(piece + b"\x03", piece + b"\x04"))
    with pytest.raises(ModelFileError, match="control tokens"):
        Tokenizer(path)
