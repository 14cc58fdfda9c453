"""Tokens that fine-tunes add beside tokenizer.model, and the files that name them."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import mistral_common
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from mixq.errors import ModelFileError, StorageError, UsageError
from mixq.text.json_tokenizer import JsonTokenizer
from mixq.text.open import open_tokenizer
from mixq.text.sentencepiece_tokenizer import SentencePieceTokenizer
from mixq.text.tokenizer import Tokenizer
from mixq.text.tokenizer_config import AddedToken, TokenizerConfig
from tests.text.json_files import added, library_of, llama_json, trained_json
from tests.text.samples import CONTROL_SPELLINGS, SCRIPTS

V1 = Path(mistral_common.__file__).parent / "data" / "tokenizer.model.v1"
TOKENS = {
    32000: AddedToken("<|im_end|>", True),
    32001: AddedToken("<|im_start|>", True),
    32002: AddedToken("<tool_call>", False),
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return SentencePieceTokenizer(V1, config=TokenizerConfig(TOKENS, "<s>", "<|im_end|>"))


def test_ids_beyond_sentencepiece(tokenizer: Tokenizer) -> None:
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id, tokenizer.begin_ids) == (32003, 1, 32000, (1,))
    assert [tokenizer.is_control(i) for i in (2, 31999, 32000, 32001, 32002)] == [True, False, True, True, False]
    assert (tokenizer.piece_bytes(32000), tokenizer.piece_bytes(32002)) == (b"", b"<tool_call>")
    assert (tokenizer.token_text(32000), tokenizer.token_text(2), tokenizer.token_text(258)) == (
        "<|im_end|>",
        "</s>",
        "<0xFF>",
    )
    assert tokenizer.token_bytes()[32001] == b"<|im_start|>"
    with pytest.raises(UsageError, match="32003"):
        tokenizer.token_text(32003)


@pytest.mark.parametrize("text", [*SCRIPTS.values(), *CONTROL_SPELLINGS, "<|im_start|>user\n<|im_end|>"])
def test_a_text_has_the_ids_that_it_has_without_added_control_tokens(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.encode(text) == SentencePieceTokenizer(V1).encode(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text.replace("▁", " ")


def test_an_added_word_is_found_in_a_text(tokenizer: Tokenizer) -> None:
    data = llama_json(V1, added(32000, "<|im_end|>"), added(32001, "<|im_start|>"), added(32002, "<tool_call>", False))
    text = "Now <tool_call>x\n<tool_call>"
    ids = tokenizer.encode(text)
    assert ids == library_of(data).encode(text, add_special_tokens=False).ids
    assert ids.count(32002) == 2


def test_specials_are_parsed_where_that_is_asked_for(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("</s>", parse_special=True) == [2]
    assert tokenizer.encode("<s>Hi</s>", parse_special=True) == [1, 15359, 2]
    data = llama_json(V1, *(added(i, t.content) for i, t in TOKENS.items()))
    text = "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.encode(text, parse_special=True) == library_of(data).encode(text, add_special_tokens=False).ids


@settings(deadline=None, max_examples=200)
@given(ids=st.lists(st.one_of(st.integers(0, 32002), st.integers(0, 260), st.integers(31990, 32002)), max_size=20))
def test_decoding_leaves_out_control_tokens_alone(tokenizer: Tokenizer, ids: list[int]) -> None:
    """Sentencepiece decodes the same ids with its own end token for ours, and pieces for the added word."""
    peer = sentencepiece.SentencePieceProcessor(model_file=str(V1))
    parts, part = [], []
    for token_id in ids:
        if token_id == 32002:
            parts.append(part)
            part = []
        else:
            part.append(2 if token_id >= 32000 else token_id)
    texts = [peer.decode([1, 28705, *p] if n else p) for n, p in enumerate([*parts, part])]
    if len(texts) > 1 and not texts[0]:
        texts[0] = ""
    assert tokenizer.decode(ids) == "<tool_call>".join(texts)


def test_ids_that_stand_for_nothing(tokenizer: Tokenizer) -> None:
    """Gaps, as in a vocabulary rounded up to 32064 whose last rows alone are named."""
    gap = SentencePieceTokenizer(V1, config=TokenizerConfig({32063: AddedToken("<|im_end|>", True)}))
    assert gap.vocab_size == 32064
    assert (gap.is_control(32010), gap.piece_bytes(32010), gap.token_text(32010)) == (True, b"", "<unused 32010>")
    assert gap.token_bytes()[32010] == b""
    assert gap.decode([15359, 32010, 32063]) == "Hi"


def test_an_added_token_in_the_place_of_a_piece() -> None:
    """Some fine-tunes reuse a rare piece; what the piece spelled is then spelled in bytes."""
    plain = SentencePieceTokenizer(V1)
    rare = next(i for i in range(259, 32000) if plain.token_text(i) == "語")
    reused = SentencePieceTokenizer(V1, config=TokenizerConfig({rare: AddedToken("<|im_end|>", True)}))
    assert rare in plain.encode("日本語")
    assert rare not in reused.encode("日本語")
    assert reused.decode(reused.encode("日本語")) == "日本語"
    assert (reused.special_id("<|im_end|>"), reused.decode([rare])) == (rare, "")


def test_llama_files_name_the_pieces_that_are_there() -> None:
    tokens = {0: AddedToken("<unk>", True), 1: AddedToken("<s>", True), 2: AddedToken("</s>", True)}
    named, plain = SentencePieceTokenizer(V1, config=TokenizerConfig(tokens)), SentencePieceTokenizer(V1)
    assert named.token_bytes() == plain.token_bytes()
    assert named.decode([0]) == plain.decode([0]) == " ⁇ "


def write(folder: Path, **files: Any) -> Path:
    for stem, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / f"{stem}.json").write_text(text, "utf-8")
    return folder


def test_what_the_files_say(tmp_path: Path) -> None:
    config = TokenizerConfig.read(
        write(
            tmp_path,
            added_tokens={"<|im_end|>": 32000, "<pad>": 32001, "word": 32002, "<|im_start|>": 32003},
            special_tokens_map={"pad_token": {"content": "<pad>"}, "eos_token": "</s>"},
            tokenizer_config={
                "eos_token": {"content": "<|im_end|>"},
                "legacy": False,
                "add_bos_token": False,
                "added_tokens_decoder": {"32002": {"content": "words", "special": False}},
            },
        )
    )
    assert config.added == {
        32000: AddedToken("<|im_end|>", True),
        32001: AddedToken("<pad>", True),
        32002: AddedToken("words", False),
        32003: AddedToken("<|im_start|>", True),  # no file says so, but a turn's mark is no text
    }
    assert (config.bos_token, config.eos_token, config.legacy, config.add_bos) == (None, "<|im_end|>", False, False)
    assert TokenizerConfig.read(tmp_path / "none") == TokenizerConfig()


BAD: dict[str, dict[str, Any]] = {
    "added_tokens.json: an added token has the id -1": {"added_tokens": {"x": -1}},
    "added_tokens.json: an added token has the id True": {"added_tokens": {"x": True}},
    "ids are whole numbers below 1,048,576": {"added_tokens": {"x": 2**40}},
    "must be a string of 1 to": {"added_tokens": {"x" * 2000: 32000}},
    "an added token is ''": {"tokenizer_config": {"added_tokens_decoder": {"32000": {"content": ""}}}},
    "added_tokens_decoder is not an object": {"tokenizer_config": {"added_tokens_decoder": [1]}},
    "is not an id with its token": {"tokenizer_config": {"added_tokens_decoder": {"x": {"content": "a"}}}},
    "must be a JSON object": {"tokenizer_config": "[]"},
    "is not JSON": {"special_tokens_map": "{"},
    "nested too deep": {"tokenizer_config": '{"a":' * 100_000},
}


@pytest.mark.parametrize("words", BAD)
def test_a_bad_file_is_named(words: str, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=words):
        TokenizerConfig.read(write(tmp_path, **BAD[words]))


def test_files_of_no_sane_size_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_bytes(b"x" * ((1 << 20) + 1))
    with pytest.raises(ModelFileError, match="has at most 1,048,576"):
        TokenizerConfig.read(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    os.mkfifo(tmp_path / "tokenizer_config.json")
    with pytest.raises(ModelFileError, match="not a regular file"):
        TokenizerConfig.read(tmp_path)


def test_the_tokenizer_of_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"neither tokenizer\.model nor tokenizer\.json"):
        open_tokenizer(tmp_path)
    write(tmp_path, tokenizer=trained_json("bytes"))
    assert isinstance(open_tokenizer(tmp_path), JsonTokenizer)
    write(tmp_path, tokenizer_config={"bos_token": "</s>"})
    assert open_tokenizer(tmp_path).bos_id == 1
    shutil.copy(V1, tmp_path / "tokenizer.model")
    assert isinstance(open_tokenizer(tmp_path), SentencePieceTokenizer)
    (tmp_path / "tokenizer.model").unlink()
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer.json").symlink_to(tmp_path / "tokenizer.json")
    with pytest.raises((ModelFileError, StorageError)):
        open_tokenizer(tmp_path)
