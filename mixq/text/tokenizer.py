"""The sentencepiece tokenizer of a model folder.

Contract: `encode` turns text into ids of ordinary pieces only; begin, end and other control ids are put in by
`mixq.text.chat_template` and never come out of text. `piece_bytes` says which bytes an id stands for, and
`decode` is those bytes in a row (through `mixq.text.stream`), equal to sentencepiece's own decoding. This module
knows no chat format and no model.

Source of the format: sentencepiece's model proto; Mixtral's file is Mistral's `tokenizer.model.v1`.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import sentencepiece

from mixq.errors import ModelFileError, StorageError, UsageError, printable
from mixq.text.stream import StreamDecoder

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # sentencepiece writes a space inside a piece as U+2581
MAX_FILE_BYTES = 64 * 2**20  # the largest published tokenizer.model is 5 MB; a hostile file is not read


class Tokenizer:
    """Text to ids and back.

    Args:
        path: a sentencepiece model, usually the folder's `tokenizer.model`.
        content: its content, where that is at hand; the path then only names it.

    Raises:
        ModelFileError: the file is not a sentencepiece model, or has no begin and end tokens.
        StorageError: the file cannot be read.
    """

    def __init__(self, path: str | Path, content: bytes | None = None) -> None:
        self.path = Path(path)
        self._processor = _load(self.path) if content is None else _parse(content, self.path)
        ids = list(range(self._processor.vocab_size()))
        self.vocab_size: int = len(ids)
        self.bos_id: int = self._processor.bos_id()
        self.eos_id: int = self._processor.eos_id()
        self.unk_id: int = self._processor.unk_id()
        # sentencepiece gives -1 where the piece is missing, or is not a control piece: text could then spell it.
        if self.bos_id < 0 or self.eos_id < 0:
            raise ModelFileError(f"{printable(self.path)} has no control tokens for begin and end of text.")
        pieces: list[str] = self._processor.id_to_piece(ids)
        self._is_byte: list[bool] = self._processor.is_byte(ids)
        self._is_control: list[bool] = self._processor.is_control(ids)
        self._piece_bytes = [self._bytes_of(i, piece) for i, piece in enumerate(pieces)]
        # Llama's and Mistral's models put a space in front of a text and take it off again; some others do not.
        first_id = self._processor.encode("a")[0]
        self.adds_leading_space: bool = pieces[first_id].startswith(SPACE)

    def _bytes_of(self, token_id: int, piece: str) -> bytes:
        if self._is_control[token_id]:
            return b""
        if self._is_byte[token_id]:
            return bytes([int(piece[3:5], 16)])  # "<0xE2>"
        if token_id == self.unk_id:
            return str(self._processor.decode([token_id])).encode()
        return piece.replace(SPACE, " ").encode()

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`, without begin and end tokens.

        Whatever the text spells ("</s>", "<s>", "<0x0A>"), no control id comes out. Lone surrogates, which are
        no text, become U+FFFD.
        """
        ids: list[int] = self._processor.encode(_without_lone_surrogates(text))
        return ids

    def decode(self, ids: Iterable[int], *, strip_leading_space: bool = True) -> str:
        """Return the text of `ids`; control ids are nothing, invalid UTF-8 becomes U+FFFD byte by byte.

        Args:
            ids: token ids.
            strip_leading_space: take off the space that `encode` put in front; False for the middle of a text.

        Raises:
            UsageError: an id outside of the vocabulary.
        """
        decoder = StreamDecoder(self, strip_leading_space=strip_leading_space)
        return "".join(decoder.push(i) for i in ids) + decoder.flush()

    def piece_bytes(self, token_id: int) -> bytes:
        """Return the bytes that an id adds to a text; none for a control id.

        Raises:
            UsageError: the id is outside of the vocabulary.
        """
        self._check(token_id)
        return self._piece_bytes[token_id]

    def is_byte(self, token_id: int) -> bool:
        """Return whether an id is a byte-fallback piece: one byte, perhaps of a longer character."""
        self._check(token_id)
        return self._is_byte[token_id]

    def is_control(self, token_id: int) -> bool:
        """Return whether an id is a control token (begin, end), which no text can spell."""
        self._check(token_id)
        return self._is_control[token_id]

    def _check(self, token_id: int) -> None:
        if not 0 <= token_id < self.vocab_size:
            raise UsageError(f"token id {token_id} is not in the tokenizer's vocabulary of {self.vocab_size}.")


def _load(path: Path) -> sentencepiece.SentencePieceProcessor:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise StorageError(f"{printable(path)} cannot be read: {error.strerror}.") from error
    return _parse(data, path)


def _parse(data: bytes, path: Path) -> sentencepiece.SentencePieceProcessor:
    if not data or len(data) > MAX_FILE_BYTES:
        size = "empty" if not data else f"larger than {MAX_FILE_BYTES} bytes"
        raise ModelFileError(f"{printable(path)} is not a sentencepiece model: it is {size}.")
    try:
        return sentencepiece.SentencePieceProcessor(model_proto=data)
    except RuntimeError as error:
        raise ModelFileError(
            f"{printable(path)} is not a sentencepiece model.",
            hint="Copy tokenizer.model from the original checkpoint into the folder.",
        ) from error


def _without_lone_surrogates(text: str) -> str:
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
