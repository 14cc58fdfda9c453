"""The prompt: input of one or several lines, with editing, completion and history.

Contract: `LineInput.read` returns what was typed; Ctrl-D at an empty prompt is EOFError, Ctrl-C there is `Interrupted`
(otherwise it empties the prompt). Enter ends a message, except inside triple quotes; Alt-Enter and pasted
text begin a new line in it. The prompt is drawn on the terminal, even if standard output is a file.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from prompt_toolkit.application import get_app
from prompt_toolkit.filters import Condition
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.history import History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import create_output
from prompt_toolkit.shortcuts import PromptSession
from prompt_toolkit.styles import Style
from prompt_toolkit.utils import is_dumb_terminal

from mixq.chat.commands import is_open
from mixq.chat.completion import ChatCompleter
from mixq.chat.history import PrivateHistory
from mixq.chat.terminal import window_size

if TYPE_CHECKING:
    from prompt_toolkit.input import Input
    from prompt_toolkit.output import Output

MENU_ROWS = 6
_STYLE = Style.from_dict(
    {"bottom-toolbar": "noreverse ansibrightblack", "prompt": "bold", "continuation": "ansibrightblack"}
)


class Interrupted(Exception):
    """Ctrl-C at an empty prompt."""


class LineInput:
    """Reads messages and commands at the prompt.

    Args:
        toolbar: returns the status line for a number of columns.
        history: file of the input history; None keeps it in memory.
        source, screen: replace the terminal's, for tests.

    Attributes:
        problem: why the history is not kept; None if it is.
    """

    def __init__(
        self,
        toolbar: Callable[[int], str],
        history: Path | None,
        *,
        source: Input | None = None,
        screen: Output | None = None,
    ) -> None:
        kept: History = PrivateHistory(history) if history is not None else InMemoryHistory()
        if screen is None and not is_dumb_terminal():  # prompt_toolkit does not draw if it chooses the output itself
            screen = create_output(always_prefer_tty=True)
        self.problem = kept.problem if isinstance(kept, PrivateHistory) else None
        self._toolbar = toolbar
        self._prompt: PromptSession[str] = PromptSession(
            multiline=True,
            completer=ChatCompleter(),
            complete_while_typing=Condition(_in_command),
            history=kept,
            key_bindings=_bindings(),
            prompt_continuation=lambda width, _line, _wraps: FormattedText([("class:continuation", "… "[:width])]),
            bottom_toolbar=self._status,
            enable_open_in_editor=True,
            tempfile_suffix=".md",
            style=_STYLE,
            input=source,
            output=screen,
        )

    def read(self, default: str = "") -> str:
        """Return the next message or command; the prompt begins with `default`."""
        _, rows = window_size()
        self._prompt.reserve_space_for_menu = max(0, min(MENU_ROWS, rows - 4))
        return self._prompt.prompt([("class:prompt", "> ")], default=default)

    def _status(self) -> FormattedText:
        return FormattedText([("class:bottom-toolbar", self._toolbar(window_size()[0] - 1))])


def _in_command() -> bool:
    return get_app().current_buffer.text.startswith("/")


def _bindings() -> KeyBindings:
    bindings = KeyBindings()

    @bindings.add("enter")
    def end(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.complete_state is not None and buffer.complete_state.current_completion is not None:
            buffer.complete_state = None  # accepts the choice in the menu
        elif is_open(buffer.text):
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @bindings.add("escape", "enter")
    def new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @bindings.add("c-c")
    def interrupt(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=Interrupted, style="class:aborting")

    return bindings
