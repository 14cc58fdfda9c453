"""A sentencepiece model (tokenizer.model), with the tokens that a fine-tune has added in other files.

Contract: ids and decoding equal sentencepiece's; ids beyond its vocabulary are those of added tokens. An added token
with an id of the vocabulary replaces that piece, whose text is then encoded as bytes.

Source of the format: sentencepiece's model proto; Mixtral's file is Mistral's `tokenizer.model.v1`.
"""

from __future__ import annotations

import functools
from pathlib import Path

import sentencepiece

from mixq.errors import ModelFileError, printable
from mixq.formats.json_file import read_bounded
from mixq.text.tokenizer import MAX_FILE_BYTES, MAX_VOCABULARY, Pieces, Tokenizer, check_size
from mixq.text.tokenizer_config import TokenizerConfig

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # sentencepiece writes a space inside a piece as U+2581
NO_LEADING_SPACE = b"\x1a\x02\x18\x00"
"""Appended to a model proto: normalizer_spec { add_dummy_prefix: false }. Later fields override earlier ones."""


class SentencePieceTokenizer(Tokenizer):
    """Text to ids and back.

    Args:
        path: a sentencepiece model, usually the folder's `tokenizer.model`.
        content: its content; None reads the file.
        config: the files next to it.

    Raises:
        ModelFileError: the file is not a sentencepiece model, or has no BOS and EOS tokens.
        StorageError: the file cannot be read.
    """

    def __init__(self, path: str | Path, content: bytes | None = None, config: TokenizerConfig | None = None) -> None:
        path, config = Path(path), config or TokenizerConfig()
        self._content = read_bounded(path, MAX_FILE_BYTES) if content is None else content
        self._processor = processor = _parse(self._content, path)
        # -1: the piece is missing, or is not a control piece, so that text could spell it.
        if processor.bos_id() < 0 or processor.eos_id() < 0:
            raise ModelFileError(f"{printable(path)} has no BOS and EOS control tokens.")
        self.unk_id = processor.unk_id()
        self.bytes_are = "sentencepiece"
        self._legacy = config.legacy
        names: list[str] = processor.id_to_piece(list(range(processor.vocab_size())))
        # Llama's and Mistral's models add a space before a text and remove it when decoding; some others do not.
        self.adds_leading_space = names[processor.encode("a")[0]].startswith(SPACE)
        super().__init__(path, *_with_added(_pieces(processor, names), names, config))
        self.bos_id = self._named(config.bos_token, processor.bos_id())
        self.eos_id = self._named(config.eos_token, processor.eos_id())
        self.begin_ids = (self.bos_id,) if config.add_bos else ()

    def _named(self, name: str | None, default: int) -> int:
        found = self.special_id(name) if name is not None else None
        return default if found is None else found

    def _encode_piecewise(self, text: str, *, continues: bool) -> list[int]:
        processor = self._processor if self._legacy or not continues else self._without_leading_space
        return self._without_control(processor.encode(text))

    @functools.cached_property
    def _without_leading_space(self) -> sentencepiece.SentencePieceProcessor:
        return _parse(self._content + NO_LEADING_SPACE, self.path)


def _pieces(processor: sentencepiece.SentencePieceProcessor, names: list[str]) -> Pieces:
    ids = list(range(len(names)))
    pieces = Pieces(
        [name.replace(SPACE, " ").encode() for name in names], processor.is_byte(ids), processor.is_control(ids)
    )
    for i in ids:
        if pieces.is_control[i]:
            pieces.content[i] = names[i].encode()
        elif pieces.is_byte[i]:
            pieces.content[i] = bytes([int(names[i][3:5], 16)])  # "<0xE2>"
    if processor.unk_id() >= 0:
        pieces.content[processor.unk_id()] = str(processor.decode([processor.unk_id()])).encode()
    return pieces


def _with_added(pieces: Pieces, names: list[str], config: TokenizerConfig) -> tuple[Pieces, dict[str, int]]:
    """Return the vocabulary including added tokens, and, by text, the added tokens that are ordinary words."""
    gap = max(config.added, default=-1) + 1 - len(names)
    pieces.content += [b""] * gap
    pieces.is_byte += [False] * gap
    pieces.is_control += [True] * gap  # unused ids in between
    byte_ids = {pieces.content[i]: i for i, is_byte in enumerate(pieces.is_byte) if is_byte}
    words: dict[str, int] = {}
    for token_id, token in config.added.items():
        if token_id < len(names):
            if token.content == names[token_id]:
                continue
            spelled = [bytes([byte]) for byte in pieces.content[token_id]]
            pieces.spelling[token_id] = [byte_ids[byte] for byte in spelled if byte in byte_ids]
        pieces.content[token_id] = token.content.encode("utf-8", "replace")
        pieces.is_control[token_id], pieces.is_byte[token_id] = token.is_control, False
        if not token.is_control:
            words[token.content] = token_id
    return pieces, words


def _parse(content: bytes, path: Path) -> sentencepiece.SentencePieceProcessor:
    check_size(content, path, "sentencepiece model")
    try:
        processor = sentencepiece.SentencePieceProcessor(model_proto=content)
    except RuntimeError as error:
        raise ModelFileError(
            f"{printable(path)} is not a sentencepiece model.",
            hint="Copy tokenizer.model from the original checkpoint into the folder.",
        ) from error
    if processor.vocab_size() > MAX_VOCABULARY:
        raise ModelFileError(
            f"{printable(path)} has {processor.vocab_size():,} tokens; at most {MAX_VOCABULARY:,} are read."
        )
    return processor
