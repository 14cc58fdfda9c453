"""Answers that must be JSON: computes the tokens that may come next, with the llguidance library.

Contract: a `GrammarSpec` describes the text, a `GrammarCompiler` compiles it to a `Grammar` for one vocabulary, and a
`Grammar` follows one answer: `allowed` returns the tokens that may come next, `accept` takes the chosen one, `complete`
is true when only the end can follow. One space may precede the document, since a reply's first word has one; blanks
inside it are limited, so that a model cannot generate blanks forever.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mixq.errors import MixqError, UsageError, printable
from mixq.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    import llguidance

BLANKS = r"[ \n]{1,60}"
"""Most blanks between the parts of a document: enough for pretty-printed text."""

MAX_SCHEMA_BYTES = 64 * 2**10


@dataclass(frozen=True, slots=True)
class GrammarSpec:
    """An answer must be a JSON document that satisfies `schema`; None for any JSON object."""

    schema: Mapping[str, Any] | None = None


class GrammarCompiler:
    """Compiles grammars for one vocabulary.

    Args:
        tokenizer: for the bytes of each token.
        vocab_size: tokens that may be sampled.
        eos_token_ids: tokens that end an answer.

    Raises:
        MixqError: the llguidance library is not installed.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        try:
            import llguidance
        except ImportError as error:
            raise MixqError("JSON answers need the llguidance library.", hint="pip install llguidance") from error
        # Limits for a schema, in addition to the library's limits for the states of its parser and lexer.
        self._limits = llguidance.LLParserLimits(
            max_grammar_size=200_000, initial_lexer_fuel=1_000_000, step_lexer_fuel=200_000
        )
        self._matcher = llguidance.LLMatcher
        self._tokenizer = llguidance.LLTokenizer(
            llguidance.TokenizerWrapper(_Tokens(tokenizer, vocab_size, eos_token_ids[0])),
            n_vocab=vocab_size,
            eos_token=list(eos_token_ids),
        )

    def compile(self, spec: GrammarSpec) -> Grammar:
        """Return a grammar in its initial state.

        Raises:
            UsageError: the schema is not JSON, is too large, or uses features that the library does not support.
        """
        grammar = self._matcher.grammar_from_lark(_lark(spec))
        matcher = self._matcher(self._tokenizer, grammar, log_level=0, limits=self._limits)
        if matcher.is_error():
            reason = printable(matcher.get_error().strip().splitlines()[0], 300)
            raise UsageError(f"The JSON schema is not supported: {reason}")
        return Grammar(matcher)


class Grammar:
    """Tracks one answer."""

    def __init__(self, matcher: llguidance.LLMatcher) -> None:
        self._matcher = matcher

    def allowed(self) -> bytes:
        """Return a bit per token, the lowest of the first byte first: whether the token may come next.

        Raises:
            MixqError: the grammar exceeds a limit of the library.
        """
        mask = self._matcher.compute_bitmask()
        self._check()
        return mask

    def accept(self, token_id: int) -> None:
        """Advance by the chosen token, one of those allowed.

        Raises:
            MixqError: the grammar exceeds a limit of the library.
        """
        self._matcher.consume_token(token_id)
        self._check()

    @property
    def complete(self) -> bool:
        """Whether only the end can follow."""
        return self._matcher.is_stopped()

    def _check(self) -> None:
        if self._matcher.is_error():
            reason = printable(self._matcher.get_error().strip().splitlines()[0], 300)
            raise MixqError(f"The JSON schema became too complex to enforce: {reason}", hint="Use a simpler schema.")


class _Tokens:
    """A tokenizer with the library's interface."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_id: int) -> None:
        tokens = tokenizer.token_bytes()[:vocab_size]
        self.tokens = tokens + [b""] * (vocab_size - len(tokens))
        self.eos_token_id = eos_id
        self.bos_token_id = tokenizer.bos_id
        self.special_token_ids = [i for i in range(len(tokens)) if tokenizer.is_control(i)]

    @functools.cached_property
    def _ids(self) -> dict[bytes, int]:
        return {token: i for i, token in enumerate(self.tokens) if token}

    def __call__(self, text: bytes) -> list[int]:
        """Return ids that spell some bytes, the longest tokens first; the library uses it only for forced text."""
        ids, start = [], 0
        while start < len(text):
            ends = range(min(len(text), start + 32), start, -1)
            end = next(end for end in ends if text[start:end] in self._ids)
            ids.append(self._ids[text[start:end]])
            start = end
        return ids


def _lark(spec: GrammarSpec) -> str:
    """Return the library's grammar for a document, with at most one space before it."""
    schema: dict[str, Any] = {"type": "object"} if spec.schema is None else dict(spec.schema)
    schema.pop("x-guidance", None)
    schema["x-guidance"] = {"whitespace_pattern": BLANKS}
    try:
        text = json.dumps(schema, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"The JSON schema is not JSON: {printable(error)}.") from error
    if len(text) > MAX_SCHEMA_BYTES:
        raise UsageError(f"The JSON schema has {len(text)} bytes; at most {MAX_SCHEMA_BYTES} are allowed.")
    return f'start: LEADING? document\nLEADING: " "\ndocument: %json {text}\n'
