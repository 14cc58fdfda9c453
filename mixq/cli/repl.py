"""The chat at a terminal: read a line, obey it if it is a command, else answer it.

Contract: `Repl.run` returns when the user leaves. Replies go to standard output, everything else to standard error.
An error in one turn is shown, and the chat goes on.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

from mixq.cli import output
from mixq.cli.conversation import Conversation
from mixq.cli.interrupt import first_interrupt_cancels
from mixq.config import did_you_mean, format_size
from mixq.errors import MixqError, printable
from mixq.events import Done

HELP = """\
/help           this list
/system [TEXT]  show or set the system text; "/system -" removes it
/clear          forget the conversation; the system text stays
/regen          another reply to the last message
/stats          figures of the last reply and of the model
/exit           leave; Ctrl-D or Ctrl-C at the prompt do the same
//TEXT          say something that begins with a slash
Ctrl-C stops a reply and keeps what has been said."""


class Repl:
    """Commands and turns of one chat.

    Args:
        conversation: to lead.
        read_line: gives the next line; raises EOFError or KeyboardInterrupt when the user leaves.
        model_stats: gives the model's own figures for /stats.
    """

    def __init__(
        self,
        conversation: Conversation,
        read_line: Callable[[], str],
        model_stats: Callable[[], Mapping[str, Any]],
    ) -> None:
        self.conversation = conversation
        self._read_line = read_line
        self._model_stats = model_stats
        self._commands: dict[str, Callable[[str], None]] = {
            "/help": lambda _: output.talk().print(HELP),
            "/system": self._set_system,
            "/clear": self._clear,
            "/regen": self._regenerate,
            "/stats": self._show_stats,
        }

    def run(self) -> None:
        """Read and answer until the user leaves."""
        while True:
            try:
                line = self._read_line()
            except (EOFError, KeyboardInterrupt):
                output.talk().print()
                return
            if line.strip() in ("/exit", "/quit", "/bye"):
                return
            try:
                self._obey(line)
            except MixqError as error:
                output.print_error(error)

    def _obey(self, line: str) -> None:
        if not line.strip():
            return
        if line.startswith("//"):
            self._answer(line[1:])
        elif line.startswith("/"):
            name, _, rest = line.strip().partition(" ")
            command = self._commands.get(name)
            if command is None:
                suggestion = did_you_mean(name, [*self._commands, "/exit"])
                output.warn(f"there is no command {printable(name)}.{suggestion} /help lists them.")
            else:
                command(rest.strip())
        else:
            self._answer(line)

    def _answer(self, text: str) -> None:
        with first_interrupt_cancels() as cancel, PromptNote() as note:
            done = self.conversation.ask(text, note.then(output.model_text), cancel=cancel, progress=note.update)
        self._finish(done)

    def _regenerate(self, _: str) -> None:
        if not self.conversation.can_regenerate:
            output.warn("there is no reply to replace yet.")
            return
        if self.conversation.is_greedy:
            output.note("At temperature 0 a reply stays the same; leave, and give --temperature 0.7 for others.")
        with first_interrupt_cancels() as cancel:
            done = self.conversation.regenerate(output.model_text, cancel=cancel)
        self._finish(done)

    def _finish(self, done: Done) -> None:
        if not done.text.endswith("\n"):
            sys.stdout.write("\n")
            sys.stdout.flush()
        ending = {
            "length": "[ended by --max-tokens]",
            "context": "[the context is full: /clear begins anew]",
            "cancelled": "[stopped]",
        }.get(done.reason)
        if not done.text.strip():
            ending = ending or "[no reply]"
        if ending is not None:
            output.note(ending)
        output.note(output.stats_line(done))

    def _set_system(self, text: str) -> None:
        if text:
            self.conversation.system = "" if text == "-" else text
        output.note(f"system text: {printable(self.conversation.system, 1000) or 'none'}")

    def _clear(self, _: str) -> None:
        self.conversation.clear()
        output.note("The conversation is forgotten.")

    def _show_stats(self, _: str) -> None:
        last = self.conversation.last
        figures = output.stats_line(last).replace("\n", "\n  ") if last else ""
        output.talk().print(f"last reply:\n  {figures}" if last else "last reply: none yet")
        for name, value in self._model_stats().items():
            if name != "last":
                shown = format_size(value) if name.endswith("_bytes") else printable(value)
                output.talk().print(f"{name.removesuffix('_bytes').replace('_', ' ')}: {shown}")


class PromptNote:
    """A line on the terminal while a long prompt is being read; gone before the first word of the reply."""

    def __init__(self) -> None:
        self._shown = False

    def __enter__(self) -> PromptNote:
        return self

    def __exit__(self, *_: object) -> None:
        self._clear()

    def update(self, done: int, total: int) -> None:
        """Show how much of the prompt has been run, where it takes more than one step and someone watches."""
        if done < total and sys.stderr.isatty():
            sys.stderr.write(f"\rreading the prompt: {done} of {total} tokens ")
            sys.stderr.flush()
            self._shown = True

    def then(self, show: Callable[[str], None]) -> Callable[[str], None]:
        """Return `show`, preceded by taking the line away."""

        def clear_and_show(text: str) -> None:
            self._clear()
            show(text)

        return clear_and_show

    def _clear(self) -> None:
        if self._shown:
            sys.stderr.write("\r" + " " * 60 + "\r")
            sys.stderr.flush()
            self._shown = False
