"""The errors that a user sees, their exit codes, and the checks of values that raise them.

Contract: every failure that a user can cause or repair is raised as a `MixqError` with the cause and, in `hint`, the
next step. The command line turns it into one message and `exit_code`, without a traceback. `Fields` checks the
values of parsed files and of keyword arguments.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeGuard, TypeVar

Value = TypeVar("Value")


class MixqError(Exception):
    """A failure with a cause and a next step.

    Args:
        message: the cause, in one sentence, with names escaped (`printable`).
        hint: what the user can do next; shown on a separate line.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(MixqError):
    """A flag, argument or Python parameter with an invalid value."""

    exit_code = 2


class PromptError(UsageError):
    """A prompt that cannot be run: empty, too long for the context, or text without a tokenizer."""


class PromptTooLong(PromptError):
    """A prompt with more tokens than the context holds; prompts are never truncated.

    Attributes:
        tokens: of the prompt.
        context: that the context holds.
    """

    def __init__(self, tokens: int, context: int) -> None:
        super().__init__(
            f"The prompt has {tokens} tokens; the context holds {context}.",
            hint="Shorten it, or use a larger --context (up to the model's maximum, which `mixq show` prints).",
        )
        self.tokens = tokens
        self.context = context


class QueueFull(MixqError):
    """The server's queue is full.

    Attributes:
        retry_after: seconds after which to try again.
    """

    def __init__(self, waiting: int, retry_after: int) -> None:
        super().__init__(
            f"The queue is full: {waiting} requests are waiting.", hint=f"Try again in {retry_after} seconds."
        )
        self.retry_after = retry_after


class ModelFileError(MixqError):
    """A model folder or checkpoint that is missing, damaged, or in a format that mixq does not read."""

    exit_code = 3


class DoesNotFitError(MixqError):
    """The model, context or budget does not fit into memory."""

    exit_code = 4


class StorageError(MixqError):
    """Disk or network: no space, no permission, a failed read or write."""

    exit_code = 5


def printable(name: object, limit: int = 200) -> str:
    """Return `name` safe to print: control characters from hostile files are escaped."""
    text = str(name)[: limit + 1]  # a hostile file may have megabytes here
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ' Did you mean X?' for the closest known word, or an empty string."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def is_integer(value: object, low: int = 0, high: float = 2**63 - 1) -> TypeGuard[int]:
    """Whether a value is a whole number within bounds; true and 1.0 are not."""
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def is_number(value: object, low: float = -sys.float_info.max, high: float = sys.float_info.max) -> TypeGuard[float]:
    """Whether a value is a finite number within bounds; true is not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


REQUIRED: Any = object()
"""Used as a default: the field is required."""


class Fields:
    """The fields of a parsed JSON or TOML object, or keyword arguments, each checked when it is read.

    A field that is missing or null takes its default. A value of another type is refused: true is not 1, 1.0 is not a
    whole number, "1" is not a number. Messages have the path of the field, its value and what is allowed:
    "config.json: rope_parameters.rope_theta is 'x'; it must be a number above 0."

    Args:
        values: the object.
        where: what precedes a field's name in messages, such as "config.json: "; empty for arguments.
        error: creates the error from a message.
    """

    def __init__(
        self, values: Mapping[str, Any], where: str = "", error: Callable[[str], MixqError] = ModelFileError
    ) -> None:
        self.values = values
        self.where = where
        self.error = error

    def wrong(self, name: str, allowed: str, suggestion: str = "") -> MixqError:
        """Return the error for a field that does not have an allowed value."""
        found = printable(repr(self.values[name])) if name in self.values else "missing"
        return self.error(f"{self.where}{printable(name, 80)} is {found}; it must be {allowed}.{suggestion}")

    def only(self, known: Iterable[str]) -> None:
        """Refuse fields with other names."""
        known = list(known)
        for name in self.values:
            if name not in known:
                suggestion = did_you_mean(str(name)[:80], known)
                raise self.error(f"{self.where}{printable(name, 80)} is an unknown key.{suggestion}")

    def integer(
        self, name: str, low: int | None = None, high: int | None = None, *, default: int = REQUIRED, allowed: str = ""
    ) -> int:
        """Return a whole number; `allowed` replaces its description in the message."""
        value = self._get(name, default)
        if not is_integer(value, -(2**63) if low is None else low, 2**63 - 1 if high is None else high):
            raise self.wrong(name, allowed or f"a whole number{_range(low, high)}")
        return value

    def integers(self, name: str, low: int, high: int, *, default: tuple[int, ...], allowed: str) -> tuple[int, ...]:
        """Return one whole number, or those of a list that is not empty."""
        value = self._get(name, default)
        listed = value if isinstance(value, list | tuple) else [value]
        if not listed or not all(is_integer(each, low, high) for each in listed):
            raise self.wrong(name, allowed)
        return tuple(listed)

    def number(
        self, name: str, low: float | None = None, high: float | None = None, *, default: float = REQUIRED
    ) -> float:
        """Return a finite number."""
        value, most = self._get(name, default), sys.float_info.max
        if not is_number(value, -most if low is None else low, most if high is None else high):
            raise self.wrong(name, f"a number{_range(low, high)}")
        return float(value)

    def boolean(self, name: str, *, default: bool = REQUIRED) -> bool:
        """Return true or false."""
        value = self._get(name, default)
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false")
        return value

    def text(self, name: str, longest: int | None = None, *, default: str = REQUIRED) -> str:
        """Return a string; with `longest`, one of 1 to that many characters."""
        value = self._get(name, default)
        if not isinstance(value, str) or (longest is not None and not 0 < len(value) <= longest):
            raise self.wrong(name, "a string" if longest is None else f"a string of 1 to {longest} characters")
        return value

    def one_of(self, name: str, allowed: Sequence[Value], *, default: Value = REQUIRED) -> Value:
        """Return one of these values, which must have the same type too: true is not 1."""
        value = self._get(name, default)
        for each in allowed:
            if type(value) is type(each) and value == each:
                return each
        shown = f"one of {', '.join(map(str, allowed))}" if len(allowed) > 1 else repr(allowed[0])
        known = [each for each in allowed if isinstance(each, str)]
        raise self.wrong(name, shown, did_you_mean(value[:80], known) if isinstance(value, str) else "")

    def object(self, name: str, *, default: Mapping[str, Any] = REQUIRED) -> Fields:
        """Return the fields of a nested object."""
        value = self._get(name, default)
        if not isinstance(value, Mapping):
            raise self.wrong(name, "an object")
        return type(self)(value, f"{self.where}{printable(name, 80)}.", self.error)

    def _get(self, name: str, default: Any) -> Any:
        value = self.values.get(name)
        return default if value is None and default is not REQUIRED else value


def _range(low: float | None, high: float | None) -> str:
    if low is None:
        return ""
    low_shown, high_shown = (f"{bound:g}" if isinstance(bound, float) else f"{bound}" for bound in (low, high))
    return f" of at least {low_shown}" if high is None else f" from {low_shown} to {high_shown}"
