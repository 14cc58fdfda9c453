"""The reader of checked fields: exact types, and the path of the field in every message."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mixq.errors import Fields, ModelFileError, UsageError

READ: dict[str, Callable[[Fields, str], object]] = {
    "integer": lambda fields, name: fields.integer(name, 0, 100),
    "number": lambda fields, name: fields.number(name, -5, 100),
    "boolean": lambda fields, name: fields.boolean(name),
    "text": lambda fields, name: fields.text(name, 4),
    "one_of": lambda fields, name: fields.one_of(name, ("on", "off", 1)),
    "object": lambda fields, name: fields.object(name),
}


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("integer", 0),
        ("integer", 100),
        ("number", -5),
        ("number", 0.5),
        ("boolean", False),
        ("text", "four"),
        ("one_of", "off"),
        ("one_of", 1),
    ],
)
def test_a_value_of_the_kind_is_returned(kind: str, value: Any) -> None:
    read = READ[kind](Fields({"x": value}), "x")
    assert read == value


@pytest.mark.parametrize(
    ("kind", "value", "allowed"),
    [
        *(
            ("integer", value, "a whole number from 0 to 100")
            for value in (True, 1.0, "1", -1, 101, 10**400, None, [1], float("nan"))
        ),
        *(
            ("number", value, "a number from -5 to 100")
            for value in (False, "0.5", float("nan"), float("inf"), 10**400, 100.5, None, {})
        ),
        *(("boolean", value, "true or false") for value in (0, 1, "true", None, 1.0)),
        *(("text", value, "a string of 1 to 4 characters") for value in (1, True, "", "fiver", None, b"text")),
        *(("one_of", value, "one of on, off, 1") for value in (True, 1.0, "On", None, ["on"])),
        *(("object", value, "an object") for value in ([], "x", 1, None)),
    ],
)
def test_another_kind_is_refused_with_its_path(kind: str, value: Any, allowed: str) -> None:
    fields = Fields({"outer": {"inner": {"x": value}}}, "file.json: ")
    with pytest.raises(ModelFileError) as caught:
        READ[kind](fields.object("outer").object("inner"), "x")
    assert caught.value.message.startswith("file.json: outer.inner.x is ")
    assert f"; it must be {allowed}." in caught.value.message


def test_missing_fields_and_defaults() -> None:
    fields = Fields({"null": None}, error=UsageError)
    assert fields.integer("null", default=3) == fields.integer("missing", default=3) == 3
    with pytest.raises(UsageError, match=r"^missing is missing; it must be a whole number of at least 1\.$"):
        fields.integer("missing", 1)
    with pytest.raises(UsageError, match=r"^null is None; it must be true or false\.$"):
        fields.boolean("null")


def test_unknown_fields_and_near_misses() -> None:
    with pytest.raises(ModelFileError, match=r"^a: seeed is an unknown key\. Did you mean 'seed'\?$"):
        Fields({"seeed": 1}, "a: ").only(["seed", "top_k"])
    with pytest.raises(ModelFileError, match=r"^mode is 'cpuu'; it must be one of cpu, gpu\. Did you mean 'cpu'\?$"):
        Fields({"mode": "cpuu"}).one_of("mode", ("cpu", "gpu"))


def test_hostile_names_and_values_are_short_and_printable() -> None:
    with pytest.raises(ModelFileError) as caught:
        Fields({"\x1b[31m" * 999: "\x1b" * 9999}).integer("\x1b[31m" * 999)
    assert len(caught.value.message) < 400
    assert "\x1b" not in caught.value.message
