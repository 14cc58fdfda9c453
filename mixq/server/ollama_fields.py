"""What Ollama's clients send: the schemas of /api/chat and /api/generate, and their options as sampling parameters.

Contract: as in `fields`; options that are decided when the server starts (num_gpu, num_thread, ...) are refused by
name, and num_ctx is taken where the context is at least as large: nothing is ever cut.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mixq.engine.sampling import SamplingParams
from mixq.server import fields
from mixq.server.errors import bad_field, shown
from mixq.server.fields import Field
from mixq.server.openai_chat import TEXT_ONLY
from mixq.server.sampling_fields import LONGEST_STOP, MOST_STOPS, NO_TOOLS
from mixq.text.grammar import GrammarSpec

AT_START = "it is decided when the server starts"

OPTIONS: fields.Schema = {
    "temperature": Field(fields.number(0, 100)),
    "top_k": Field(fields.whole(0, 2**31 - 1)),
    "top_p": Field(fields.number(0, 1)),
    "min_p": Field(fields.number(0, 1)),
    "repeat_penalty": Field(fields.number(0.01, 100)),
    "presence_penalty": Field(fields.number(-2, 2)),
    "frequency_penalty": Field(fields.number(-2, 2)),
    "seed": Field(fields.whole(0, 2**63 - 1)),
    "stop": Field(fields.texts(MOST_STOPS, LONGEST_STOP), default=()),
    "num_predict": Field(fields.whole(-2, 2**31 - 1), default=-1),
    "num_ctx": Field(fields.whole(1, 2**31 - 1)),
    **fields.harmless("num_keep"),  # what to keep when a prompt is cut
    **fields.refused("the penalty looks at everything", "repeat_last_n", neutral=(-1,)),
    **fields.refused("there is no such filter", "tfs_z", "typical_p", neutral=(1, 1.0)),
    **fields.refused("there is no such way to sample", "mirostat", neutral=(0,)),
    **fields.refused("there is no such way to sample", "mirostat_tau", "mirostat_eta"),
    **fields.refused("all tokens are alike to it", "penalize_newline", neutral=(True,)),
    **fields.refused(AT_START, "num_gpu", "num_thread", "num_batch", "main_gpu", "low_vram", "numa"),
    **fields.refused(AT_START, "use_mmap", "use_mlock", "f16_kv", "vocab_only", "logits_all", "embedding_only"),
}

_COMMON: fields.Schema = {
    "model": Field(fields.text),
    "stream": Field(fields.flag, default=True, nullable=True),
    "format": Field(lambda value, _: value, nullable=True),
    "options": Field(fields.nested(OPTIONS), nullable=True),
    **fields.harmless("keep_alive"),  # the model stays
    **fields.refused("the model does not think before it answers", "think", neutral=(False,)),
    **fields.refused("/v1/chat/completions and /v1/completions have them", "logprobs", neutral=(False,)),
    **fields.refused("/v1/chat/completions and /v1/completions have them", "top_logprobs", neutral=(0,)),
    **fields.refused("a prompt is never cut", "truncate", neutral=(False, True)),
    **fields.refused("a prompt is never cut", "shift", neutral=(False, True)),
}

CHAT: fields.Schema = {
    **_COMMON,
    "messages": Field(fields.listed, required=True),
    **fields.refused(NO_TOOLS, "tools", neutral=([],)),
}

GENERATE: fields.Schema = {
    **_COMMON,
    "prompt": Field(fields.text, default=""),
    "system": Field(fields.text, default="", nullable=True),
    "raw": Field(fields.flag, default=False, nullable=True),
    **fields.refused("the model does not fill in the middle", "suffix", neutral=("",)),
    **fields.refused(
        "the format is the model's; --template chooses another when the server starts", "template", neutral=("",)
    ),
    **fields.refused("a conversation goes on by its messages, at /api/chat", "context", neutral=([],)),
    **fields.refused(TEXT_ONLY, "images", neutral=([],)),
}

MESSAGE: fields.Schema = {
    "role": Field(fields.one_of("system", "user", "assistant"), required=True),
    "content": Field(fields.text, default=""),
    **fields.refused(TEXT_ONLY, "images", neutral=([],)),
    **fields.refused(NO_TOOLS, "tool_calls", neutral=([],)),
    **fields.refused(NO_TOOLS, "tool_name", "tool_call_id", neutral=("",)),
    **fields.refused("the model does not think before it answers", "thinking", neutral=("",)),
}

SHOW: fields.Schema = {
    "model": Field(fields.text),
    "name": Field(fields.text),  # the older name
    "verbose": Field(fields.flag, default=False, nullable=True),
    **fields.refused("the model is as it is", "template", "system", neutral=("",)),
    **fields.harmless("options"),
}


def read_messages(value: list[Any]) -> list[dict[str, str]]:
    """Return the messages of a chat.

    Raises:
        RequestError: what is no message of text.
    """
    found = [fields.read(MESSAGE, each, f"messages[{i}]") for i, each in enumerate(value)]
    return [{"role": each["role"], "content": each["content"]} for each in found]


def sampling(
    options: Mapping[str, Any] | None, wished: Mapping[str, float], *, seed: int | None, context: int
) -> SamplingParams:
    """Return the sampling parameters of a request.

    Args:
        options: fields of `OPTIONS`, None for none.
        wished: the model's own.
        seed: stands for one that is not given.
        context: tokens that there is room for.

    Raises:
        RequestError: more context than there is.
    """
    given = fields.read(OPTIONS, {}) if options is None else options
    if given["num_ctx"] is not None and given["num_ctx"] > context:
        raise bad_field(
            "options.num_ctx",
            f"options.num_ctx is {given['num_ctx']}; this server has {context}: `mixq serve --context N` gives more.",
        )
    if given["top_p"] == 0:
        raise bad_field("options.top_p", "options.top_p is 0; it must be above 0.")
    names = ("temperature", "top_k", "top_p", "min_p", "presence_penalty", "frequency_penalty")
    params: dict[str, Any] = {**wished, **{name: given[name] for name in names if given[name] is not None}}
    if given["repeat_penalty"] is not None:
        params["repetition_penalty"] = given["repeat_penalty"]
    most = given["num_predict"]
    return SamplingParams.from_kwargs(
        **params,
        stop=given["stop"],
        seed=seed if given["seed"] is None else given["seed"],
        max_tokens=most if most >= 0 else None,  # -1 and -2: to the end
    )


def grammar(value: Any) -> GrammarSpec | None:
    """Return what `format` wants the text to be: "json", or a schema.

    Raises:
        RequestError: anything else.
    """
    if value is None or value == "":
        return None
    if value == "json":
        return GrammarSpec()
    if isinstance(value, dict):
        return GrammarSpec(value)
    raise bad_field("format", f'format is {shown(value)}; it must be "json" or a JSON schema.')
