"""The base class of tokenizers: text to ids of a model's vocabulary, and back.

Contract: `encode` turns text into ids of ordinary tokens only. BOS, EOS and other control tokens are inserted
by `mixq.text.templates`; text becomes control tokens only with `parse_special`. `piece_bytes` returns the bytes of an
id; `decode` joins them, and equals the decoding of the library behind the tokenizer; `StreamDecoder` decodes while ids
are generated. `sentencepiece_tokenizer` and `json_tokenizer` read the files.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mixq.errors import ModelFileError, UsageError, printable

MAX_FILE_BYTES = 64 * 2**20  # the largest published files have 20 MB; a hostile one is not read
MAX_VOCABULARY = 2**20

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

BytesAre = Literal["sentencepiece", "tokens", "text"]
"""How a library reads bytes: "sentencepiece": byte tokens end at a control token, and each invalid byte is one
U+FFFD; "tokens": the same, but control tokens are taken out first; "text": all tokens are bytes of one text, in which
one U+FFFD replaces the longest possible start of a character."""


@dataclass(slots=True)
class Pieces:
    """A vocabulary: the text of each id, by id."""

    content: list[bytes]  # the bytes of an id in a text; for a control token its name, which is not part of the text
    is_byte: list[bool]  # the token is a single byte, which may be part of a character
    is_control: list[bool]  # tokens that no text is encoded to and that add no text
    # {id: other ids} for control tokens that a library could find in a text; the other ids have the same text
    spelling: dict[int, list[int]] = field(default_factory=dict)


class Tokenizer(ABC):
    """Text to ids and back.

    Attributes:
        path: the file.
        vocab_size: ids are below this; some may be unused.
        bos_id, eos_id: the tokens for begin and end of a text.
        unk_id: the unknown token; -1 if there is none.
        begin_ids: the first tokens of a text: the BOS token, or none for models that were trained without.
        adds_leading_space: whether `encode` adds a space before a text, which `decode` removes.
        bytes_are: how the library behind the tokenizer decodes invalid bytes.
    """

    path: Path
    bos_id: int
    eos_id: int
    unk_id: int
    begin_ids: tuple[int, ...]
    adds_leading_space: bool
    bytes_are: BytesAre

    def __init__(self, path: Path, pieces: Pieces, words: Mapping[str, int]) -> None:
        self.path = path
        self.vocab_size = len(pieces.content)
        self._pieces = pieces
        controls = (i for i, control in enumerate(pieces.is_control) if control and pieces.content[i])
        self._special = {pieces.content[i].decode("utf-8", "replace"): i for i in controls}
        self._words = {word: i for word, i in words.items() if not pieces.is_control[i]}
        self._word_pattern = _any_of(self._words)
        self._special_pattern = _any_of({**self._words, **self._special})

    @abstractmethod
    def _encode_piecewise(self, text: str, *, continues: bool) -> list[int]:
        """Return the ids of a text, without looking for added tokens."""

    def encode(self, text: str, *, parse_special: bool = False, continues: bool = False) -> list[int]:
        """Return the ids of `text`, without BOS and EOS tokens.

        The result has no control ids, even if the text contains their names ("</s>", "<|im_end|>", "<0x0A>"). Lone
        surrogates become U+FFFD.

        Args:
            text: any text.
            parse_special: encode "</s>" as the end token, and so on. Not for untrusted text.
            continues: the text follows a control token; no space is added before it if the model's tokenizer adds none
                there.
        """
        ids: list[int] = []
        for part, token_id in self._split(without_lone_surrogates(text), parse_special):
            if token_id is not None:
                ids.append(token_id)
                continues = True
            elif part:
                ids += self._encode_piecewise(part, continues=continues)
        return ids

    def _split(self, text: str, parse_special: bool) -> Iterator[tuple[str, int | None]]:
        """Yield text, and the tokens that fine-tunes have added for whole words, in order."""
        pattern = self._special_pattern if parse_special else self._word_pattern
        if pattern is None:
            yield text, None
            return
        end = 0
        for match in pattern.finditer(text):
            found = match[0]
            yield text[end : match.start()], None
            yield found, self._words[found] if found in self._words else self._special[found]
            end = match.end()
        yield text[end:], None

    def _without_control(self, ids: list[int]) -> list[int]:
        """Replace the control tokens that the library has found in a text by ids of the same text."""
        spelling = self._pieces.spelling
        if not spelling or spelling.keys().isdisjoint(ids):
            return ids
        return [spelled for i in ids for spelled in spelling.get(i, (i,))]

    def decode(self, ids: Iterable[int], *, strip_leading_space: bool = True) -> str:
        """Return the text of `ids`; control ids have no text, invalid UTF-8 becomes U+FFFD.

        Args:
            ids: token ids.
            strip_leading_space: remove the space that `encode` added; False for the middle of a text.

        Raises:
            UsageError: an id outside of the vocabulary.
        """
        decoder = StreamDecoder(self, strip_leading_space=strip_leading_space)
        return "".join(decoder.push(i) for i in ids) + decoder.flush()

    def piece_bytes(self, token_id: int) -> bytes:
        """Return the bytes of an id; none for a control id.

        Raises:
            UsageError: the id is outside of the vocabulary.
        """
        self._check(token_id)
        return b"" if self._pieces.is_control[token_id] else self._pieces.content[token_id]

    def is_byte(self, token_id: int) -> bool:
        """Return whether an id is a byte token, which need not be a whole character."""
        self._check(token_id)
        return self._pieces.is_byte[token_id]

    def is_control(self, token_id: int) -> bool:
        """Return whether an id is a control token (BOS, EOS, the marker of a turn)."""
        self._check(token_id)
        return self._pieces.is_control[token_id]

    def special_id(self, name: str) -> int | None:
        """Return the control token with this name, such as "<|im_end|>"; None if there is none."""
        return self._special.get(name)

    def token_text(self, token_id: int) -> str:
        """Return an id's text for display: control tokens by name, invalid bytes as <0xE2>."""
        self._check(token_id)
        content = self._pieces.content[token_id]
        if not content and self._pieces.is_control[token_id]:
            return f"<unused {token_id}>"
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError:
            return "".join(f"<0x{byte:02X}>" for byte in content)

    def token_bytes(self) -> list[bytes]:
        """Return the content of every id: bytes of text, or a control token's name (see `is_control`)."""
        return list(self._pieces.content)

    def _check(self, token_id: int) -> None:
        if not 0 <= token_id < self.vocab_size:
            raise UsageError(f"token id {token_id} is not in the tokenizer's vocabulary of {self.vocab_size}.")


class StreamDecoder:
    """Decodes ids one by one, and returns characters as soon as they are certain.

    All pushes and the flush together are exactly the text that the tokenizer's library decodes from all ids at once; no
    push returns part of a character. (If byte tokens are invalid UTF-8, the tokenizers library also loses valid
    characters next to them; here only invalid bytes become U+FFFD.)

    Args:
        tokenizer: whose ids they are.
        strip_leading_space: remove one space at the start of the text, which the tokenizer adds when it encodes.
            True for a reply, False for text that continues a prompt.
    """

    def __init__(self, tokenizer: Tokenizer, *, strip_leading_space: bool = True) -> None:
        self._tokenizer = tokenizer
        self._strip = strip_leading_space and tokenizer.adds_leading_space
        self._pending = bytearray()  # bytes that may still become a character: at most 3

    def push(self, token_id: int) -> str:
        """Add an id and return the text that is now certain, perhaps none.

        Raises:
            UsageError: the id is outside of the vocabulary.
        """
        piece = self._tokenizer.piece_bytes(token_id)
        if self._tokenizer.is_byte(token_id):
            self._pending += piece
            text = self._complete_characters()
            self._strip = self._strip and not text
            return text
        if self._tokenizer.bytes_are != "sentencepiece" and self._tokenizer.is_control(token_id):
            return ""
        text = self.flush()
        self._strip = self._strip and not text
        piece_text = piece.decode("utf-8")
        if self._strip and piece_text:
            self._strip = False
            if token_id != self._tokenizer.unk_id:  # sentencepiece decodes the unknown piece as " ⁇ "
                piece_text = piece_text.removeprefix(" ")
        return text + piece_text

    def flush(self) -> str:
        """Return the rest: held-back bytes that are not a character, as U+FFFD."""
        if self._tokenizer.bytes_are == "text":
            text = _REPLACEMENT if self._pending else ""
        else:
            text = _REPLACEMENT * len(self._pending)
        self._pending.clear()
        return text

    def _complete_characters(self) -> str:
        """Remove whole characters from the pending bytes; bytes that cannot start one become U+FFFD."""
        text = ""
        while self._pending:
            try:
                text += self._pending.decode("utf-8")
            except UnicodeDecodeError as error:
                text += self._pending[: error.start].decode("utf-8")
                if error.reason == "unexpected end of data":
                    del self._pending[: error.start]
                    return text
                text += _REPLACEMENT
                del self._pending[: error.end if self._tokenizer.bytes_are == "text" else error.start + 1]
            else:
                self._pending.clear()
        return text


def check_size(content: bytes, path: Path, kind: str, limit: int = MAX_FILE_BYTES) -> None:
    """Refuse an empty or too large tokenizer file."""
    if not content or len(content) > limit:
        size = "empty" if not content else f"larger than {limit} bytes"
        raise ModelFileError(f"{printable(path)} is not a {kind}: it is {size}.")


def without_lone_surrogates(text: str) -> str:
    """Return `text` with each lone surrogate replaced by U+FFFD."""
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _any_of(words: Iterable[str]) -> re.Pattern[str] | None:
    """Return a pattern of the words, the longest first; None without words."""
    ordered = sorted(words, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, ordered))) if ordered else None
