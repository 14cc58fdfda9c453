"""The fields of requests: strict JSON, pydantic models, and one rule for unknown fields.

Contract: `read` returns a checked model or raises a `RequestError` that names the wrong field. Types are exact, except
that 16.0 is accepted as 16. A field has an effect (a field of the model), or is listed in `unused` (ignored, or refused
unless its value is neutral), or is unknown; `Body.check_names` handles the last two.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from functools import cache
from typing import Annotated, Any, ClassVar, NamedTuple, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, WrapValidator, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError, PydanticUseDefault
from starlette.requests import Request

from mixq.errors import did_you_mean, printable
from mixq.formats.json_file import parse_json_object
from mixq.server.errors import RequestError, shown

BODY = "mixq.body"
"""The key of the body in the scope; set by the guard."""
LONG = 64 << 10
"""From this many bytes a body is parsed in a thread: about a millisecond of work."""
MAX_DEPTH = 100
"""Most levels of nested objects and lists."""


class Unused(NamedTuple):
    """A field without effect: every value is ignored (`why` None), or only null and `neutral` values are."""

    why: str | None
    neutral: tuple[Any, ...] = ()


def ignored(*names: str) -> dict[str, Unused]:
    """Return fields that have no effect on the answer."""
    return dict.fromkeys(names, Unused(None))


def refused(why: str, *names: str, neutral: tuple[Any, ...] = ()) -> dict[str, Unused]:
    """Return fields of unsupported features, with the values that do not request them."""
    return dict.fromkeys(names, Unused(why, neutral))


class Body(BaseModel):
    """An object in a request."""

    model_config = ConfigDict(strict=True)
    unused: ClassVar[Mapping[str, Unused]] = {}

    @classmethod
    @cache
    def names(cls) -> frozenset[str]:
        """Return the names of fields that have an effect, as clients spell them."""
        return frozenset(field.alias or name for name, field in cls.model_fields.items())

    @model_validator(mode="before")
    @classmethod
    def check_names(cls, body: Any) -> Any:
        """Refuse unknown fields, and unsupported fields with values that are not neutral."""
        for name, value in body.items() if isinstance(body, dict) else ():
            if name in cls.names():
                continue
            rule = cls.unused.get(name)
            if rule is None:
                near = did_you_mean(name[:60], (*cls.names(), *cls.unused))
                raise PydanticCustomError("unknown_parameter", "{near}", {"field": printable(name, 60), "near": near})
            asks = value is not None and not any(type(value) is type(n) and value == n for n in rule.neutral)
            if asks and rule.why is not None:
                raise PydanticCustomError("unsupported_parameter", "{why}", {"field": name, "why": rule.why})
        return body


def wanted(what: str, **context: Any) -> PydanticCustomError:
    """Return the error for a value that is not `what`; `value` in the context is quoted instead of the input."""
    return PydanticCustomError("wanted", "{what}", {"what": what, **context})


def must_be(what: str, accepts: Callable[[Any], bool] = lambda _: True) -> WrapValidator:
    """Return a check with one message for all rules of its type and of `accepts`."""

    def check(value: Any, inner: Callable[[Any], Any]) -> Any:
        with contextlib.suppress(ValidationError):
            found = inner(value)
            if accepts(found):
                return found
        raise wanted(what)

    return WrapValidator(check)


def whole(low: int, high: int) -> WrapValidator:
    """Return the check of a whole number's bounds."""
    return must_be(f"a whole number from {low} to {high}", lambda value: low <= value <= high)


def number(low: float, high: float) -> WrapValidator:
    """Return the check of a number's bounds."""
    return must_be(f"a number from {low:g} to {high:g}", lambda value: low <= value <= high)


def _default_for_null(value: Any) -> Any:
    if value is None:
        raise PydanticUseDefault
    return value


T = TypeVar("T")
F = TypeVar("F", bound=Body)

Whole = Annotated[int, BeforeValidator(lambda v: int(v) if isinstance(v, float) and v.is_integer() else v)]
Nullable = Annotated[T, BeforeValidator(_default_for_null)]
"""A field for which null means the default."""
ModelName = Annotated[str | None, must_be("a string", lambda name: name is not None)]
"""The name of a model; None where the field is missing, which null is not."""


async def read(schema: type[F], http: Request) -> F:
    """Return the fields of a request.

    Raises:
        RequestError: 400, not a JSON object with this schema.
    """
    if http.url.query:
        raise RequestError(
            400, "The URL must not have a query string; put fields into the JSON body, the API key into a header."
        )
    body: bytes = http.scope[BODY]
    return parse(schema, body) if len(body) < LONG else await asyncio.to_thread(parse, schema, body)


def parse(schema: type[F], body: bytes) -> F:
    """Return the fields of a body; raises what `read` raises."""
    if not body.strip():
        raise RequestError(400, "The request has no body; send a JSON object.")
    parsed = parse_json_object(body, "The body", MAX_DEPTH, lambda message: RequestError(400, message))
    try:
        return schema.model_validate(parsed)
    except ValidationError as error:
        raise _refusal(error.errors(include_url=False)[0]) from None


_WANTED = {
    "string_type": "a string",
    "string_unicode": "a string of valid Unicode",
    "bool_type": "true or false",
    "int_type": "a whole number",
    "float_type": "a number",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "literal_error": "{expected}",
    "too_short": "a list with at least one entry",
    "too_long": "a list of up to {max_length}",
    "wanted": "{what}",
}


def _refusal(error: ErrorDetails) -> RequestError:
    kind, context = error["type"], error.get("ctx", {})
    param = _path(*error["loc"], *([context["field"]] if "field" in context else []))
    value = context.get("value") or shown(error["input"])
    if kind == "unknown_parameter":
        return RequestError(400, f"Unknown field {param}.{context['near']}", param=param, code=kind)
    if kind == "unsupported_parameter":
        return RequestError(400, f"{param} is not supported: {context['why']}.", param=param, code=kind)
    if kind == "unsupported_value":
        return RequestError(400, f"{param} {value} is not supported: {context['why']}.", param=param, code=kind)
    if kind == "missing":
        return RequestError(400, f"The field {param} is missing.", param=param, code="missing_parameter")
    return RequestError(400, f"{param} must be {_WANTED[kind].format(**context)}, not {value}.", param=param)


def _path(*parts: str | int) -> str:
    """Return the path of a field, such as "messages[2].content"."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts).removeprefix(".")
