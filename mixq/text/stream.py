"""Text while it is being generated: ids in, characters out as soon as they are certain.

Contract: `StreamDecoder` gives, over all pushes and the flush, exactly the text of the tokenizer's library decoding all
ids at once, and never half a character. (Where byte tokens make no valid UTF-8, the tokenizers library loses the valid
characters beside them too; here they stay, and only what is invalid becomes U+FFFD.) `StopMatcher` gives the text in
front of the first stop string, never a part of one, however the text is cut into pushes. Neither knows a library, the
model or the sampler.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

from mixq.errors import UsageError

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


BytesAre = Literal["sentencepiece", "tokens", "text"]
"""How a library reads bytes: "sentencepiece": byte tokens end at a control token, and each invalid byte is one
U+FFFD; "tokens": the same, but control tokens are taken out first; "text": all tokens are bytes of one text, in which
U+FFFD stands for as much as could have begun a character."""


class DecodingTokenizer(Protocol):
    """What decoding needs of a tokenizer (`mixq.text.tokenizer.Tokenizer`)."""

    unk_id: int
    adds_leading_space: bool
    bytes_are: BytesAre

    def piece_bytes(self, token_id: int) -> bytes: ...

    def is_byte(self, token_id: int) -> bool: ...

    def is_control(self, token_id: int) -> bool: ...


class StreamDecoder:
    """Decodes ids one by one.

    Args:
        tokenizer: whose ids they are.
        strip_leading_space: take one space off the front of the text: the one that the tokenizer puts in front
            when it encodes. True for a reply, False for text that goes on from a prompt.
    """

    def __init__(self, tokenizer: DecodingTokenizer, *, strip_leading_space: bool = True) -> None:
        self._tokenizer = tokenizer
        self._strip = strip_leading_space and tokenizer.adds_leading_space
        self._pending = bytearray()  # bytes that may still become a character: at most 3

    def push(self, token_id: int) -> str:
        """Take the next id and return the text that is now certain, perhaps none.

        Raises:
            UsageError: the id is outside of the vocabulary.
        """
        piece = self._tokenizer.piece_bytes(token_id)
        if self._tokenizer.is_byte(token_id):
            self._pending += piece
            text = self._complete_characters()
            if text:
                self._strip = False
            return text
        if self._tokenizer.bytes_are != "sentencepiece" and self._tokenizer.is_control(token_id):
            return ""
        text = self.flush()
        if text:
            self._strip = False
        piece_text = piece.decode("utf-8")
        if self._strip and piece_text:
            self._strip = False
            if token_id != self._tokenizer.unk_id:  # sentencepiece shows the unknown piece as it is, " ⁇ "
                piece_text = piece_text.removeprefix(" ")
        return text + piece_text

    def flush(self) -> str:
        """Return what is still held back: bytes that no character came of, as U+FFFD."""
        if self._tokenizer.bytes_are == "text":
            text = _REPLACEMENT if self._pending else ""
        else:
            text = _REPLACEMENT * len(self._pending)
        self._pending.clear()
        return text

    def _complete_characters(self) -> str:
        """Take whole characters off the pending bytes; what cannot begin one becomes U+FFFD."""
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


class StopMatcher:
    """Cuts a stream of text at the first stop string.

    The first is the one that is complete first; of those complete at the same place, the longest. So the result
    does not depend on how the text is cut into pushes.

    Args:
        stops: the strings; none means that nothing stops and nothing is held back.

    Raises:
        UsageError: an empty stop string, which would stop everything.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        if any(not stop for stop in stops):
            raise UsageError("A stop string is empty; it would stop every reply at once.")
        self._stops = sorted(set(stops), key=len, reverse=True)
        self._held = ""
        self.matched: str | None = None

    def push(self, text: str) -> tuple[str, bool]:
        """Take more text; return what may be shown, and whether a stop string was met.

        After a stop string has been met, further text is dropped.
        """
        if self.matched is not None:
            return "", True
        seen = self._held + text
        found = self._first_match(seen)
        if found is not None:
            start, self.matched = found
            self._held = ""
            return seen[:start], True
        kept = self._longest_possible_start(seen)
        self._held = seen[len(seen) - kept :]
        return seen[: len(seen) - kept], False

    def flush(self) -> str:
        """Return the text held back, when no more will come."""
        held, self._held = self._held, ""
        return held

    def _first_match(self, text: str) -> tuple[int, str] | None:
        matches = [(text.find(stop) + len(stop), -len(stop), stop) for stop in self._stops if stop in text]
        if not matches:
            return None
        end, _, stop = min(matches)
        return end - len(stop), stop

    def _longest_possible_start(self, text: str) -> int:
        """Return the length of the longest end of `text` that a stop string begins with."""
        longest = 0
        for stop in self._stops:
            for length in range(min(len(stop) - 1, len(text)), longest, -1):
                if text.endswith(stop[:length]):
                    longest = length
                    break
        return longest
