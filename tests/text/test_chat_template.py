"""mixq.text.chat_template: the ids that mistral-common's version 1 instruct tokenizer gives."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixq.errors import PromptError, UsageError
from mixq.text.chat_template import Message
from mixq.text.templates import get_template
from mixq.text.tokenizer import Tokenizer
from tests.text.samples import CONTROL_SPELLINGS, SCRIPTS

encode_chat = get_template("mistral-v1").encode


@pytest.fixture(scope="session")
def mistral(tokenizer: Tokenizer) -> Any:
    module = pytest.importorskip("mistral_common.tokens.tokenizers.mistral")
    return module.MistralTokenizer.from_file(str(tokenizer.path))


def peer_ids(mistral: Any, messages: list[Message]) -> list[int]:
    protocol = pytest.importorskip("mistral_common.protocol.instruct.messages")
    request = pytest.importorskip("mistral_common.protocol.instruct.request")
    kinds = {"system": "SystemMessage", "user": "UserMessage", "assistant": "AssistantMessage"}
    converted = [getattr(protocol, kinds[m.role])(content=m.content) for m in messages]
    ids: list[int] = mistral.encode_chat_completion(request.ChatCompletionRequest(messages=converted)).tokens
    return ids


def conversation(*contents: str, system: str | None = None) -> list[Message]:
    roles = ("user", "assistant")
    turns = [Message(roles[i % 2], content) for i, content in enumerate(contents)]
    return [Message("system", system), *turns] if system is not None else turns


def test_ids_of_a_known_conversation(mixtral_tokenizer: Tokenizer) -> None:
    first, second = "1 733 16289 28793 22557 733 28748 16289 28793", "733 16289 28793 6526 28804 733 28748 16289 28793"
    expected = f"{first} 15359 736 28723 2 {second}"
    assert encode_chat(mixtral_tokenizer, conversation("Hello", "Hi there.", "Who?")) == [
        int(i) for i in expected.split()
    ]


def test_the_compared_tokenizer_is_version_1(mistral: Any) -> None:
    assert type(mistral.instruct_tokenizer).__name__ == "InstructTokenizerV1"


CONVERSATIONS = [
    conversation("Hello"),
    conversation("Hello", system="You are brief."),
    conversation("Hello", system=""),
    conversation("Hello", "Hi there.", "Who?"),
    conversation("Hello", "Hi there.", "Who?", system="  Spaces around.  \n"),
    conversation(" leading", " leading too", "trailing \n"),
    conversation("1", "2", "3", "4", "5", "6", "7"),
    conversation("[INST] nested [/INST]", "[INST]", "[/INST]"),
    [Message("system", "One."), Message("system", "Two."), *conversation("Hello")],
    *(conversation(text, text, text, system=text) for text in SCRIPTS.values()),
    *(conversation(text, text, text, system=text) for text in CONTROL_SPELLINGS),
]


@pytest.mark.parametrize("messages", CONVERSATIONS, ids=lambda messages: repr(messages[-1].content)[:40])
def test_ids_equal_mistral_common(tokenizer: Tokenizer, mistral: Any, messages: list[Message]) -> None:
    assert encode_chat(tokenizer, messages) == peer_ids(mistral, messages)


piece = st.sampled_from([*CONTROL_SPELLINGS, *SCRIPTS.values(), " ", "\n", "▁", "a", "42", "</", "s>"])
written = st.one_of(st.text(max_size=40), st.lists(piece, max_size=4).map("".join)).filter(str.strip)


@settings(deadline=None, max_examples=300)
@given(pairs=st.lists(st.tuples(written, written), max_size=3), last=written, system=st.none() | written)
def test_any_conversation_equals_mistral_common(
    tokenizer: Tokenizer, mistral: Any, pairs: list[tuple[str, str]], last: str, system: str | None
) -> None:
    messages = conversation(*(text for pair in pairs for text in pair), last, system=system)
    ids = encode_chat(tokenizer, messages)
    assert ids == peer_ids(mistral, messages)
    assert ids.count(tokenizer.bos_id) == 1
    assert ids.count(tokenizer.eos_id) == len(pairs)


def test_messages_may_be_dicts(tokenizer: Tokenizer) -> None:
    assert encode_chat(tokenizer, [{"role": "user", "content": "Hello"}]) == encode_chat(
        tokenizer, conversation("Hello")
    )


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([], "no user message"),
        ([Message("system", "Be brief.")], "no user message"),
        ([Message("assistant", "Hi")], "user first"),
        ([Message("user", "a"), Message("user", "b")], "take turns"),
        ([Message("user", "a"), Message("assistant", "b")], "must be from the user"),
        ([Message("user", "a"), Message("system", "b"), Message("user", "c")], "must come first"),
        ([Message("user", "")], "empty"),
        ([Message("user", "a"), Message("assistant", ""), Message("user", "c")], r"message 2 \(assistant\) is empty"),
    ],
)
def test_conversation_that_is_refused(tokenizer: Tokenizer, messages: list[Message], words: str) -> None:
    with pytest.raises(PromptError, match=words):
        encode_chat(tokenizer, messages)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"role": "usr", "content": "a"}, "Did you mean 'user'"),
        ({"role": "user", "content": None}, "must be a string"),
        ({"role": "user", "contents": "a"}, "Did you mean 'content'"),
        ({"role": "user"}, "content is missing"),
        ("hello", "must be a Message or a dict"),
    ],
)
def test_message_that_is_refused(value: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Message.of(value)
