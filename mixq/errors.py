"""The one error tree: what a user can be told, and the exit code that follows from it.

Contract: every failure that a user can cause, or can mend, is raised as a `MixqError` that says the cause
and, in `hint`, what to do next. The command line turns it into one message and `exit_code`; no traceback.
This module knows no command, file format or tensor.
"""

from __future__ import annotations


class MixqError(Exception):
    """A failure with a cause and a next step.

    Args:
        message: the cause, in one sentence, with names escaped (`printable`).
        hint: what the user can do next; shown on a line of its own.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(MixqError):
    """A flag, argument or Python parameter that makes no sense."""

    exit_code = 2


class PromptError(UsageError):
    """A prompt that cannot be run as it is: empty, too long for the context, or text without a tokenizer."""


class PromptTooLong(PromptError):
    """A prompt with more tokens than the context holds; nothing is ever cut.

    Attributes:
        tokens: of the prompt.
        context: that the context holds.
    """

    def __init__(self, tokens: int, context: int) -> None:
        super().__init__(
            f"The prompt has {tokens} tokens; the context holds {context}.",
            hint="Shorten it, or give a larger --context (up to the model's own maximum, shown by `mixq show`).",
        )
        self.tokens = tokens
        self.context = context


class QueueFull(MixqError):
    """As many requests wait as may wait.

    Attributes:
        retry_after: seconds after which it may be worth to ask again.
    """

    def __init__(self, waiting: int, retry_after: int) -> None:
        super().__init__(f"The queue is full: {waiting} requests wait.", hint=f"Try again in {retry_after} seconds.")
        self.retry_after = retry_after


class ModelFileError(MixqError):
    """A model folder or checkpoint that is missing, damaged, or not of a kind that mixq reads."""

    exit_code = 3


class DoesNotFitError(MixqError):
    """The model, context or budget asked for does not fit into the memory there is."""

    exit_code = 4


class StorageError(MixqError):
    """Disk or network: no space, no permission, a failed read or write."""

    exit_code = 5


def printable(name: object, limit: int = 200) -> str:
    """Return `name` safe to show: control characters and escapes from hostile files are spelled out."""
    text = str(name)[: limit + 1]  # a hostile file may hold megabytes here
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"
