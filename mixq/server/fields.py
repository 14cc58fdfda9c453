"""Closed schemas: which fields a request may have, of which kind, within which bounds.

Contract: `read` returns a value for every field of a schema, the request's or the default, and raises a `RequestError`
that names the field for everything else: an unknown name, another kind (true is no number, and neither is "1"), a value
out of bounds, null where the interface has none, and what is known but not supported. Nothing is ignored in silence:
fields that change nothing here stand in the schemas as `harmless`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from mixq.config import did_you_mean
from mixq.errors import printable
from mixq.server.errors import bad_field, shown

Check = Callable[[Any, str], Any]
"""Takes a value and the name of its field; returns the value to use, or raises RequestError."""


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a schema.

    Attributes:
        check: of a value that is there.
        default: stands for one that is not.
        nullable: null means the default.
        required: there must be one.
    """

    check: Check
    default: Any = None
    nullable: bool = False
    required: bool = False


Schema = Mapping[str, Field]


def read(schema: Schema, body: Any, where: str = "") -> dict[str, Any]:
    """Return every field of `schema` in the order of the schema.

    Args:
        schema: what may be there.
        body: the parsed JSON.
        where: the name of `body` in messages; empty for the whole request.

    Raises:
        RequestError: see the module.
    """
    if not isinstance(body, dict):
        raise bad_field(where, f"{where or 'The request'} is {shown(body)}; it must be an object.")
    prefix = f"{where}." if where else ""
    for name in body:
        if name not in schema:
            param = prefix + printable(name, 60)
            raise bad_field(
                param, f"Unknown field {param}." + did_you_mean(name[:60], schema), code="unknown_parameter"
            )
    values: dict[str, Any] = {}
    for name, field in schema.items():
        if name not in body:
            if field.required:
                raise bad_field(prefix + name, f"The field {prefix}{name} is missing.", code="missing_parameter")
            values[name] = field.default
        elif body[name] is None and field.nullable:
            values[name] = field.default
        else:
            values[name] = field.check(body[name], prefix + name)
    return values


def number(low: float, high: float) -> Check:
    """Take a number within bounds."""

    def check(value: Any, param: str) -> Any:
        if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
            raise bad_field(param, f"{param} is {shown(value)}; it must be a number from {low:g} to {high:g}.")
        return value

    return check


def whole(low: int, high: int) -> Check:
    """Take a whole number within bounds."""

    def check(value: Any, param: str) -> Any:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise bad_field(param, f"{param} is {shown(value)}; it must be a whole number from {low} to {high}.")
        return value

    return check


def flag(value: Any, param: str) -> bool:
    """Take true or false."""
    if not isinstance(value, bool):
        raise bad_field(param, f"{param} is {shown(value)}; it must be true or false.")
    return value


def text(value: Any, param: str) -> str:
    """Take a text; the body's cap bounds it."""
    if not isinstance(value, str):
        raise bad_field(param, f"{param} is {shown(value)}; it must be a text.")
    return value


def one_of(*allowed: str) -> Check:
    """Take one of some texts."""

    def check(value: Any, param: str) -> str:
        if not isinstance(value, str) or value not in allowed:
            listed = ", ".join(f'"{each}"' for each in allowed)
            near = did_you_mean(value[:60], allowed) if isinstance(value, str) else ""
            raise bad_field(param, f"{param} is {shown(value)}; it must be one of {listed}.{near}")
        return value

    return check


def texts(most: int, longest: int) -> Check:
    """Take a text or a list of texts, none of them empty; return a tuple."""

    def check(value: Any, param: str) -> tuple[str, ...]:
        several = (value,) if isinstance(value, str) else value
        if not isinstance(several, list | tuple) or len(several) > most:
            raise bad_field(param, f"{param} is {shown(value)}; it must be a text or a list of up to {most} texts.")
        for i, each in enumerate(several):
            name = param if isinstance(value, str) else f"{param}[{i}]"
            if not isinstance(each, str) or not 0 < len(each) <= longest:
                raise bad_field(name, f"{name} is {shown(each)}; it must be a text of 1 to {longest} characters.")
        return tuple(several)

    return check


def listed(value: Any, param: str) -> list[Any]:
    """Take a list with something in it."""
    if not isinstance(value, list) or not value:
        raise bad_field(param, f"{param} is {shown(value)}; it must be a list with at least one entry.")
    return value


def mapping(value: Any, param: str) -> dict[str, Any]:
    """Take an object."""
    if not isinstance(value, dict):
        raise bad_field(param, f"{param} is {shown(value)}; it must be an object.")
    return value


def biases(value: Any, param: str) -> dict[int, float]:
    """Take OpenAI's logit_bias: token ids as texts, numbers from -100 to 100."""
    found: dict[int, float] = {}
    if len(mapping(value, param)) > 1024:
        raise bad_field(param, f"{param} has {len(value)} entries; at most 1024 are taken.")
    for key, bias in value.items():
        if not (key.isascii() and key.isdigit() and len(key) <= 9):
            raise bad_field(param, f"{param} has the key {shown(key)}; its keys must be token ids.")
        found[int(key)] = number(-100, 100)(bias, f"{param}.{key}")
    return found


def nested(schema: Schema) -> Check:
    """Take an object of its own schema."""

    def check(value: Any, param: str) -> dict[str, Any]:
        return read(schema, value, param)

    return check


def only(*allowed: Any, why: str) -> Check:
    """Take nothing but values that ask for nothing; `why` says why the others are refused."""

    def check(value: Any, param: str) -> Any:
        if not any(value == each and type(value) is type(each) for each in allowed):
            raise bad_field(param, f"{param} is not supported: {why}.", code="unsupported_parameter")
        return value

    return check


def anything(_value: Any, _param: str) -> None:
    """Take a value that changes nothing here."""


def harmless(*names: str) -> dict[str, Field]:
    """Return fields that say something about a request and ask for nothing."""
    return {name: Field(anything, nullable=True) for name in names}


def refused(why: str, *names: str, neutral: Collection[Any] = ()) -> dict[str, Field]:
    """Return fields of what is not supported, with null and `neutral` for values that do not ask for it."""
    return {name: Field(only(*neutral, why=why), nullable=True) for name in names}
