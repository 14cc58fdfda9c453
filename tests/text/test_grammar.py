"""Answers that must be JSON: what is allowed, what is refused, and that any chooser ends with a valid document."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import mistral_common
import numpy as np
import pytest

from mixq.errors import UsageError
from mixq.text.grammar import BLANKS, Grammar, GrammarCompiler, GrammarSpec
from mixq.text.sentencepiece_tokenizer import SentencePieceTokenizer
from mixq.text.tokenizer import StreamDecoder, Tokenizer

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "likes": {"type": "array", "items": {"enum": ["tea", "coffee"]}, "maxItems": 2},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return SentencePieceTokenizer(Path(mistral_common.__file__).parent / "data" / "tokenizer.model.v1")


@pytest.fixture(scope="module")
def compiler(tokenizer: Tokenizer) -> GrammarCompiler:
    return GrammarCompiler(tokenizer, tokenizer.vocab_size, [tokenizer.eos_id])


def allowed(grammar: Grammar) -> list[int]:
    bits = np.unpackbits(np.frombuffer(grammar.allowed(), dtype=np.uint8), bitorder="little")
    ids: list[int] = np.flatnonzero(bits).tolist()
    return ids


def follow(grammar: Grammar, ids: list[int]) -> int:
    """Accept ids as long as they are allowed; return how many were."""
    for count, token_id in enumerate(ids):
        if token_id not in allowed(grammar):
            return count
        grammar.accept(token_id)
    return len(ids)


@pytest.mark.parametrize(
    "text", ['{"a": [1, 2.5e3, {"b": null}], "c": "x\\n é"}', "{}", '{\n  "deep": {\n    "er": true\n  }\n}']
)
def test_any_object(text: str, compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    grammar = compiler.compile(GrammarSpec())
    ids = tokenizer.encode(text)
    assert follow(grammar, ids) == len(ids)
    assert grammar.complete


@pytest.mark.parametrize(
    "text", ["Sure! {", "[1]", '"a"', "{a: 1}", "{'a': 1}", '{"a": 01}', '{"a": 1,}', '{"a": NaN}', "```json"]
)
def test_what_is_no_object(text: str, compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(text)
    assert follow(compiler.compile(GrammarSpec()), ids) < len(ids)


def test_the_end_is_allowed_at_the_end_alone(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    grammar = compiler.compile(GrammarSpec(PERSON))
    for token_id in tokenizer.encode('{"name": "Ann", "age": 31'):
        assert tokenizer.eos_id not in allowed(grammar)
        grammar.accept(token_id)
    assert not grammar.complete
    [closing] = [i for i in allowed(grammar) if tokenizer.token_bytes()[i] == b"}"][:1]
    grammar.accept(closing)
    assert grammar.complete


@pytest.mark.parametrize(
    "text",
    ['{"name": "Ann"}', '{"name": "Ann", "age": -1', '{"name": 3', '{"age": 151', '{"name": "Ann", "age": 3, "x"'],
)
def test_a_schema_is_held(text: str, compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(text)
    assert follow(compiler.compile(GrammarSpec(PERSON)), ids) < len(ids)


@pytest.mark.parametrize("schema", [None, PERSON], ids=["any object", "a person"])
@pytest.mark.parametrize("seed", range(6))
def test_whoever_chooses_the_document_is_valid(
    schema: dict[str, Any] | None, seed: int, compiler: GrammarCompiler, tokenizer: Tokenizer
) -> None:
    """The chooser knows nothing of JSON, but it likes closing brackets, or it would go on for long."""
    print(f"seed {seed}")
    rng = random.Random(seed)
    closing = {i for i, piece in enumerate(tokenizer.token_bytes()) if piece in (b'"', b"}", b"]", b'"}', b'":', b"0")}
    grammar = compiler.compile(GrammarSpec(schema))
    decoder = StreamDecoder(tokenizer)
    text = ""
    for _ in range(4000):
        options = allowed(grammar)
        liked = [i for i in options if i in closing]
        token_id = rng.choice(liked if liked and rng.random() < 0.7 else options)
        grammar.accept(token_id)
        text += decoder.push(token_id)
        if grammar.complete:
            break
    document = json.loads(text)
    assert isinstance(document, dict)
    if schema is not None:
        assert set(document) <= {"name", "age", "likes"}
        assert len(document["name"]) <= 12
        assert 0 <= document["age"] <= 150


def test_blanks_do_not_go_on_for_ever(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    grammar = compiler.compile(GrammarSpec())
    grammar.accept(tokenizer.encode("{")[-1])
    newline = tokenizer.special_id("\n") or next(i for i, b in enumerate(tokenizer.token_bytes()) if b == b"\n")
    count = 0
    while newline in allowed(grammar):
        grammar.accept(newline)
        count += 1
    assert count <= int(BLANKS.split(",")[1].rstrip("}"))


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "nonsense"}, "Invalid type"),
        ({"$ref": "http://example.com/schema"}, "example.com"),
        ({"$ref": "#/$defs/none"}, "none"),
        ({"type": "string", "pattern": "(((("}, "regex"),
        ({"not": {"type": "string"}}, "not"),
        ({"type": "object", "x": {1, 2}}, "not JSON"),
        ({"type": "string", "description": "x" * 70_000}, "at most 65536"),
    ],
)
def test_schemas_that_cannot_be_followed(schema: dict[str, Any], reason: str, compiler: GrammarCompiler) -> None:
    with pytest.raises(UsageError, match="JSON schema") as caught:
        compiler.compile(GrammarSpec(schema)).allowed()
    assert reason in str(caught.value)


def test_a_schema_says_nothing_of_the_library(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    """x-guidance is the library's own key: a caller's is left out, so blanks stay bounded."""
    schema = {"type": "object", "x-guidance": {"whitespace_pattern": "x*"}}
    assert follow(compiler.compile(GrammarSpec(schema)), tokenizer.encode("{x")) < 3


def test_answers_begun_from_one_schema_do_not_share_their_state(
    compiler: GrammarCompiler, tokenizer: Tokenizer
) -> None:
    one, two = compiler.compile(GrammarSpec()), compiler.compile(GrammarSpec())
    for token_id in tokenizer.encode("{}"):
        one.accept(token_id)
    assert one.complete
    assert not two.complete
