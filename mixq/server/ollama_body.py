"""The fields of Ollama's API, and the sampling parameters that they set.

Contract: options that are fixed when the server starts (num_gpu, num_thread, ...) are refused by name. num_ctx is
accepted up to the server's context; prompts are never truncated.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field

from mixq.engine.sampling import SamplingParams
from mixq.server import openai_body
from mixq.server.body import Body, ModelName, Nullable, Whole, ignored, number, refused, wanted, whole
from mixq.server.errors import bad_field
from mixq.text.grammar import GrammarSpec

AT_START = "it is fixed when the server starts"
NO_LOGPROBS = "/v1/chat/completions and /v1/completions have them"


class Options(Body):
    temperature: Annotated[float, number(0, 100)] = 0
    top_k: openai_body.TopK = 0
    top_p: openai_body.TopP = 1
    min_p: openai_body.Share = 0
    repeat_penalty: openai_body.RepetitionPenalty = 1
    presence_penalty: openai_body.Penalty = 0
    frequency_penalty: openai_body.Penalty = 0
    seed: openai_body.Seed = 0
    stop: openai_body.Stops = Field(default_factory=list)
    num_predict: Annotated[Whole, whole(-2, openai_body.MOST)] = -1
    num_ctx: Annotated[Whole, whole(1, openai_body.MOST)] = 1
    unused: ClassVar = {
        **ignored("num_keep"),  # what to keep of a truncated prompt
        **refused("the penalty covers all tokens", "repeat_last_n", neutral=(-1,)),
        **refused("mixq does not have this filter", "tfs_z", "typical_p", neutral=(1, 1.0)),
        **refused("mixq does not have this sampling method", "mirostat", neutral=(0,)),
        **refused("mixq does not have this sampling method", "mirostat_tau", "mirostat_eta"),
        **refused("the penalty covers all tokens", "penalize_newline", neutral=(True,)),
        **refused(AT_START, "num_gpu", "num_thread", "num_batch", "main_gpu", "low_vram", "numa"),
        **refused(AT_START, "use_mmap", "use_mlock", "f16_kv", "vocab_only", "logits_all", "embedding_only"),
    }

    def sampling(self, own: Mapping[str, float], *, seed: int | None, context: int) -> SamplingParams:
        """Return the sampling parameters.

        Args:
            own: the model's own.
            seed: for requests without one.
            context: tokens of the server's context.

        Raises:
            RequestError: num_ctx is more than that.
        """
        if self.num_ctx > context:
            message = f"options.num_ctx is {self.num_ctx}; the server's is {context}: see `mixq serve --context`."
            raise bad_field("options.num_ctx", message)
        given = self.model_dump(include=openai_body.SAMPLING | {"seed", "repeat_penalty"}, exclude_unset=True)
        if "repeat_penalty" in given:
            given["repetition_penalty"] = given.pop("repeat_penalty")
        most = self.num_predict if self.num_predict >= 0 else None  # -1 and -2: to the end
        return SamplingParams.from_kwargs(**{**own, "seed": seed, **given, "stop": self.stop, "max_tokens": most})


def _check_format(value: Any) -> Any:
    if not isinstance(value, dict) and value not in (None, "", "json"):
        raise wanted('"json" or a JSON schema')
    return value


class Shared(Body):
    """The fields of /api/chat and /api/generate."""

    model: ModelName = None
    stream: Nullable[bool] = True
    format: Annotated[Any, AfterValidator(_check_format)] = None
    options: Nullable[Options] = Options()
    unused: ClassVar = {
        **ignored("keep_alive"),  # the model stays loaded
        **refused(openai_body.NO_THINKING, "think", neutral=(False,)),
        **refused(NO_LOGPROBS, "logprobs", neutral=(False,)),
        **refused(NO_LOGPROBS, "top_logprobs", neutral=(0,)),
        **refused("prompts are never truncated", "truncate", "shift", neutral=(False, True)),
    }

    def grammar(self) -> GrammarSpec | None:
        """Return what the text must match; None for any text."""
        if self.format in (None, ""):
            return None
        return GrammarSpec() if self.format == "json" else GrammarSpec(self.format)


class Message(Body):
    role: Literal["system", "user", "assistant"]
    content: str = ""
    unused: ClassVar = {
        **refused(openai_body.TEXT_ONLY, "images", neutral=([],)),
        **refused(openai_body.NO_TOOLS, "tool_calls", neutral=([],)),
        **refused(openai_body.NO_TOOLS, "tool_name", "tool_call_id", neutral=("",)),
        **refused(openai_body.NO_THINKING, "thinking", neutral=("",)),
    }


class ChatBody(Shared):
    """The fields of /api/chat."""

    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)]
    unused: ClassVar = {**Shared.unused, **refused(openai_body.NO_TOOLS, "tools", neutral=([],))}


class GenerateBody(Shared):
    """The fields of /api/generate."""

    prompt: str = ""
    system: Nullable[str] = ""
    raw: Nullable[bool] = False
    unused: ClassVar = {
        **Shared.unused,
        **refused(openai_body.NO_INFILL, "suffix", neutral=("",)),
        **refused("the chat template is fixed when the server starts, by --template", "template", neutral=("",)),
        **refused("to continue a conversation, send its messages to /api/chat", "context", neutral=([],)),
        **refused(openai_body.TEXT_ONLY, "images", neutral=([],)),
    }


class ShowBody(Body):
    """The fields of /api/show."""

    model: ModelName = None
    name: ModelName = None  # the older name
    verbose: Nullable[bool] = False
    unused: ClassVar = {
        **refused("the model cannot be changed", "template", "system", neutral=("",)),
        **ignored("options"),
    }
