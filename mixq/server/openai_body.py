"""The fields of OpenAI's two endpoints, with Mistral's names too, and the sampling parameters that they set.

Contract: bounds are OpenAI's if it has any. An omitted field has the model's value (generation_config.json), as in the
terminal. `top_k`, `min_p`, `repetition_penalty` and `mixq` are extensions;
`random_seed`, `safe_prompt` and `schema_definition` are Mistral's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, TypeAdapter, model_validator
from pydantic_core import PydanticCustomError

from mixq.server.body import Body, ModelName, Nullable, Whole, ignored, must_be, number, refused, wanted, whole
from mixq.server.errors import bad_field, shown
from mixq.text.grammar import GrammarSpec

MOST = 2**31 - 1
MOST_CHOICES = 8
MOST_STOPS, LONGEST_STOP = 16, 256
MOST_LOGPROBS = 20
MOST_BIASES = 1024
DEFAULT_MAX_TOKENS = 16
"""Default max_tokens of a completion, as OpenAI's."""

SAMPLING = {
    "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty",
}  # fmt: skip
"""Fields that are sampling parameters under the same name."""

NO_TOOLS = "Mixtral 8x7B has no format for tools"
TEXT_ONLY = "the model reads and writes only text"
NO_THINKING = "the model does not think before it answers"
NO_INFILL = "the model does not fill in the middle"

Seed = Annotated[Whole, whole(0, 2**63 - 1)]
Temperature = Annotated[float, number(0, 2)]
TopP = Annotated[float, must_be("a number above 0, up to 1", lambda p: 0 < p <= 1)]
Share = Annotated[float, number(0, 1)]
Penalty = Annotated[float, number(-2, 2)]
RepetitionPenalty = Annotated[float, number(0.01, 100)]
TopK = Annotated[Whole, whole(0, MOST)]


def _as_stops(value: Any) -> Any:
    if isinstance(value, str) and 0 < len(value) <= LONGEST_STOP:
        return [value]
    if not isinstance(value, list) or len(value) > MOST_STOPS:
        raise wanted(f"a string of 1 to {LONGEST_STOP} characters, or a list of up to {MOST_STOPS} of them")
    return value


Stop = Annotated[
    str, must_be(f"a string of 1 to {LONGEST_STOP} characters", lambda text: 0 < len(text) <= LONGEST_STOP)
]
Stops = Annotated[list[Stop], BeforeValidator(_as_stops)]


def _check_biases(value: Any) -> Any:
    if isinstance(value, dict):
        if len(value) > MOST_BIASES:
            raise wanted(f"an object of up to {MOST_BIASES} entries", value=str(len(value)))
        for key in value:
            if not (key.isascii() and key.isdigit() and len(key) <= 9):
                raise wanted("an object whose keys are token ids", value=shown(key))
    return value


Biases = Annotated[dict[str, Annotated[float, number(-100, 100)]], BeforeValidator(_check_biases)]


class Extension(Body):
    """The field `mixq`."""

    experts: bool = False  # report the experts of each token
    cache: bool = True  # reuse the KV cache of a kept conversation


class StreamOptions(Body):
    include_usage: bool = False
    unused: ClassVar = ignored("include_obfuscation")


class JsonSchema(Body):
    name: str = ""
    schema_: dict[str, Any] = Field(default_factory=dict, alias="schema")
    schema_definition: dict[str, Any] = Field(default_factory=dict)  # Mistral's name
    strict: Nullable[bool] = False
    unused: ClassVar = ignored("description")


class ResponseFormat(Body):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    def grammar(self) -> GrammarSpec | None:
        """Return what the text must be.

        Raises:
            RequestError: json_schema without a schema.
        """
        if self.type != "json_schema":
            return GrammarSpec() if self.type == "json_object" else None
        schema = self.json_schema and (self.json_schema.schema_ or self.json_schema.schema_definition)
        if not schema:
            param = "response_format.json_schema.schema"
            raise bad_field(param, f"The field {param} is missing.")
        return GrammarSpec(schema)


class Shared(Body):
    """The fields of both endpoints."""

    model: ModelName = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK = 0
    min_p: Share = 0
    repetition_penalty: RepetitionPenalty = 1
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: Nullable[Biases] = Field(default_factory=dict)
    seed: Seed | None = None
    random_seed: Seed | None = None
    stop: Nullable[Stops] = Field(default_factory=list)
    n: Nullable[Annotated[Whole, whole(1, MOST_CHOICES)]] = 1
    stream: Nullable[bool] = False
    stream_options: Nullable[StreamOptions] = StreamOptions()
    response_format: ResponseFormat | None = None
    mixq: Extension = Extension()
    unused: ClassVar = {
        **ignored("user", "metadata", "service_tier", "safety_identifier", "prompt_cache_key"),
        **refused("nothing is stored here", "store", neutral=(False,)),
        **refused("prompts are not rewritten", "safe_prompt", neutral=(False,)),
    }

    def sampling(self, own: Mapping[str, float], *, seed: int | None) -> dict[str, Any]:
        """Return the sampling parameters, without max_tokens and logprobs.

        Args:
            own: the model's own.
            seed: for requests without one.

        Raises:
            RequestError: two seeds.
        """
        if None not in (self.seed, self.random_seed) and self.seed != self.random_seed:
            raise bad_field("random_seed", "seed and random_seed differ; use only one of them.")
        seeds = [each for each in (self.seed, self.random_seed, seed) if each is not None]
        bias = {int(token): value for token, value in self.logit_bias.items()}
        given = self.model_dump(include=SAMPLING, exclude_unset=True, exclude_none=True)
        return {**own, **given, "seed": seeds[0] if seeds else None, "stop": self.stop, "logit_bias": bias}

    def grammar(self) -> GrammarSpec | None:
        """Return what the text must match; None for any text."""
        return self.response_format.grammar() if self.response_format is not None else None


class Part(Body):
    type: str
    text: str

    @model_validator(mode="before")
    @classmethod
    def check_type(cls, part: Any) -> Any:
        """Refuse images and audio by name, before their fields are checked."""
        if isinstance(part, dict) and part.get("type") != "text":
            context = {"why": TEXT_ONLY, "field": "type", "value": shown(part.get("type"))}
            raise PydanticCustomError("unsupported_value", "{why}", context)
        return part


_PARTS = TypeAdapter(Annotated[list[Part], Field(fail_fast=True)])


def _text(content: Any) -> Any:
    if isinstance(content, list) and content:
        return "".join(part.text for part in _PARTS.validate_python(content))
    if not isinstance(content, str):
        raise wanted("a string or a list of text parts")
    return content


ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


def _role(role: str) -> str:
    if role in ("tool", "function"):
        raise PydanticCustomError("unsupported_value", "{why}", {"why": NO_TOOLS})
    if role not in ROLES:
        raise wanted("system, user or assistant")
    return ROLES[role]


class Message(Body):
    role: Annotated[str, AfterValidator(_role)]
    content: Annotated[str, BeforeValidator(_text)]
    unused: ClassVar = {
        **refused("the model does not see it", "name"),
        **refused(NO_TOOLS, "tool_calls", neutral=([],)),
        **refused(NO_TOOLS, "function_call", "tool_call_id"),
        **refused(TEXT_ONLY, "audio"),
        **refused("messages have no such field", "refusal", "reasoning_content"),
        **refused("messages have no such field", "annotations", neutral=([],)),
        **refused("the beginning of the answer cannot be preset", "prefix", neutral=(False,)),
    }


Messages = Annotated[list[Message], Field(min_length=1, fail_fast=True)]


class ChatBody(Shared):
    """The fields of /v1/chat/completions."""

    messages: Messages
    max_tokens: Annotated[Whole, whole(1, MOST)] | None = None
    max_completion_tokens: Annotated[Whole, whole(1, MOST)] | None = None
    logprobs: Nullable[bool] = False
    top_logprobs: Annotated[Whole, whole(0, MOST_LOGPROBS)] | None = None
    unused: ClassVar = {
        **Shared.unused,
        **refused(NO_TOOLS, "tools", "functions", neutral=([],)),
        **refused(NO_TOOLS, "tool_choice", "function_call", neutral=("none", "auto")),
        **refused(NO_TOOLS, "parallel_tool_calls", neutral=(True, False)),
        **refused(TEXT_ONLY, "modalities", neutral=(["text"],)),
        **refused(TEXT_ONLY, "audio"),
        **refused(NO_THINKING, "reasoning_effort", "prompt_mode"),
        **refused("the server downloads nothing", "web_search_options"),
        **refused("the length of answers cannot be set this way; use max_tokens", "verbosity"),
        **refused("predicted outputs are not used", "prediction", neutral=({"type": "content", "content": ""},)),
    }

    def limits(self) -> dict[str, int | None]:
        """Return max_tokens and logprobs.

        Raises:
            RequestError: fields contradict each other.
        """
        most, new = self.max_tokens, self.max_completion_tokens
        if None not in (most, new) and most != new:
            raise bad_field("max_tokens", "max_tokens and max_completion_tokens differ; use only one of them.")
        if self.top_logprobs is not None and not self.logprobs:
            raise bad_field("top_logprobs", "top_logprobs needs logprobs: true.")
        logprobs = (self.top_logprobs or 0) if self.logprobs else None
        return {"max_tokens": most if new is None else new, "logprobs": logprobs}


def _as_prompts(value: Any) -> Any:
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value:
        raise wanted("a string, a list of token ids, or a list of either")
    return [value] if all(type(each) is int for each in value) else value


TextOrIds = Annotated[str | list[int], must_be("a string or a list of token ids")]


class CompletionBody(Shared):
    """The fields of /v1/completions."""

    prompt: Annotated[list[TextOrIds], Field(fail_fast=True), BeforeValidator(_as_prompts)]
    max_tokens: Nullable[Annotated[Whole, whole(0, MOST)]] = DEFAULT_MAX_TOKENS
    logprobs: Annotated[Whole, whole(0, MOST_LOGPROBS)] | None = None
    echo: Nullable[bool] = False
    unused: ClassVar = {
        **Shared.unused,
        **refused("the server does not choose between answers", "best_of", neutral=(1,)),
        **refused(NO_INFILL, "suffix", neutral=("",)),
    }

    @property
    def scores_prompt(self) -> bool:
        """Whether the prompt's tokens get log probabilities too."""
        return self.echo and self.logprobs is not None
