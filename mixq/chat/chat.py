"""The terminal chat: read a line, run it if it is a command, else send it to the model.

Contract: `Chat.run` returns when the user leaves. If a turn or command fails, the error is shown, the conversation is
unchanged, and the chat continues. Text of models and files passes through `safe_text` before it is shown.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from mixq.chat import status
from mixq.chat.commands import COMMANDS, KEYS, Order, setting_name, setting_value, settings, understand
from mixq.chat.dialogue import show_events
from mixq.chat.heat_map import heat_map
from mixq.chat.input import Interrupted
from mixq.chat.safe_text import harmless
from mixq.chat.session_commands import SessionCommands
from mixq.chat.state import ChatState, Loaded, Models
from mixq.chat.terminal import Terminal, edited_in_editor
from mixq.config import format_size
from mixq.engine.events import Done, Event
from mixq.errors import MixqError, UsageError, printable
from mixq.system.memory import resident_memory

if TYPE_CHECKING:
    from mixq.engine.model import Model

ReadLine = Callable[[str], str]
"""Reads a line at the prompt, which shows the given text already: `mixq.chat.input.LineInput.read`."""

ENDINGS = {"length": "[stopped at max_tokens]", "context": "[the context is full]", "cancelled": "[stopped]"}


class Chat:
    """Commands and turns of one chat.

    Args:
        loaded: the first model.
        models: for /model.
        terminal: to write to.
        system: system prompt, "" for none.
    """

    def __init__(self, loaded: Loaded, models: Models, terminal: Terminal, system: str = "") -> None:
        self.state = ChatState(loaded, terminal, system)
        self._models = models
        self._terminal = terminal
        self._dialogue = self.state.dialogue
        sessions = SessionCommands(self.state)
        self._commands: dict[str, Callable[[str], None]] = {
            "/help": self._help,
            "/set": self._set,
            "/system": self._system,
            "/regen": self._regenerate,
            "/edit": self._edit,
            "/save": sessions.save,
            "/load": sessions.load,
            "/clear": sessions.clear,
            "/stats": self._stats,
            "/experts": self._experts,
            "/model": self._model,
        }
        assert {*self._commands, "/exit"} == {command.name for command in COMMANDS}

    def status_line(self, width: int) -> str:
        """Return the status line below the prompt."""
        if not self.state.has_model:
            return "no model"[:width]
        talk, stats = self._dialogue, self.state.loaded.model.stats()
        return status.toolbar(talk.last, talk.context_used, stats, resident_memory(), width)

    def run(self, read_line: ReadLine) -> None:
        """Read and answer until the user leaves."""
        self._read_line = read_line
        self._welcome()
        leaving = False
        while True:
            try:
                line = read_line("")
            except EOFError:
                return
            except Interrupted:
                if leaving:
                    return
                self._terminal.note("Press Ctrl-C again, or Ctrl-D, to quit.")
                leaving = True
                continue
            leaving = False
            try:
                meant = understand(line)
                if meant == Order("/exit", ""):
                    return
                self._follow(meant)
            except MixqError as error:
                self._terminal.error(error)
                self._terminal.say()
            except KeyboardInterrupt as interrupt:
                if type(interrupt) is not KeyboardInterrupt:  # SIGTERM, as the command line raises it
                    raise
                if self.state.has_model:
                    self._dialogue.use_model(self.state.loaded.model)  # the KV cache is in an unknown state
                self._terminal.note("[interrupted]")

    def _welcome(self) -> None:
        loaded, terminal = self.state.loaded, self._terminal
        model, template = loaded.model, loaded.model.template
        what = f"{loaded.title} · {format_size(model.folder.nbytes)} on {_device(model)}"
        parts = [
            status.Part(what, what, 9),
            *status.memory_parts(model.stats(), resident_memory()),
            status.Part(f"context {model.context}", f"ctx {model.context}", 8),
        ]
        terminal.say(status.fitted(parts, terminal.size()[0]))
        for line in model.notices():
            terminal.warn(harmless(line))
        if model.is_chat:
            terminal.note(f"template {template.name}: {harmless(template.why)}")
        else:
            terminal.say("A base model: it continues your text instead of answering it.", "bold")
            terminal.note(f"{harmless(template.why)}; --template NAME sets a chat template")
        terminal.note("/help: commands · Alt-Enter: new line · Ctrl-C: stop the reply · Ctrl-D: quit")
        terminal.say()

    def _follow(self, meant: Order | str | None) -> None:
        if isinstance(meant, str):
            self._answer(lambda cancel: self._dialogue.ask(meant, cancel))
        elif meant is not None:
            self._commands[meant.name](meant.argument)
            if meant.name not in ("/regen", "/edit"):
                self._terminal.say()

    # Turns

    def _answer(self, ask: Callable[[threading.Event], Iterator[Event]]) -> None:
        """Show a reply while it arrives, then its warnings and statistics."""
        warnings: list[str] = []
        stream = self._terminal.stream(markdown=self._dialogue.model.is_chat)
        with self._terminal.replying() as cancel, self._terminal.progress("reading") as progress:
            try:
                done = show_events(ask(cancel), stream.push, warn=warnings.append, progress=progress)
            finally:
                stream.finish()
        assert done is not None, "a reply ends with Done"
        for line in warnings:
            self._terminal.warn(harmless(line))
        self._report(done)

    def _report(self, done: Done) -> None:
        ending = ENDINGS.get(done.reason)
        if not done.text.strip():
            ending = f"{ending or '[no reply]'} Your message was not kept."
        if ending is not None:
            self._terminal.note(ending)
        self._terminal.note(status.fitted(status.reply_parts(done), self._terminal.size()[0] - 1))
        model = self.state.loaded.model
        for line in (status.context_advice(done.stats, model.config.max_position_embeddings), model.memory_gap()):
            if line is not None:
                self._terminal.warn(line)
        self._terminal.say()

    def _regenerate(self, _argument: str) -> None:
        if not self._dialogue.messages:
            raise UsageError("No reply to replace yet.")
        if self._dialogue.is_greedy:
            self._terminal.note("At temperature 0 the reply is always the same; use /set temperature 0.7 to vary it.")
        self._answer(self._dialogue.regenerate)

    def _edit(self, _argument: str) -> None:
        said = self._dialogue.last_question
        if said is None:
            raise UsageError("No message to change yet.")
        try:
            text = edited_in_editor(said)
            if text is None:
                text = self._read_line(said)
            else:
                self._terminal.say(harmless(text), "dim")
        except (EOFError, Interrupted):
            text = ""
        if not text.strip():
            self._terminal.note("Nothing was changed.")
            return
        changed = text
        self._answer(lambda cancel: self._dialogue.edit(changed, cancel))

    # Settings

    def _help(self, argument: str) -> None:
        word = f"/{argument.lstrip('/')}" if argument else ""
        shown = [command for command in COMMANDS if word in ("", command.name)] or list(COMMANDS)
        rows = [(f"{c.name} {c.arguments}".rstrip(), c.summary) for c in shown]
        self._terminal.table([*rows, *(KEYS if len(shown) > 1 else ())])

    def _set(self, argument: str) -> None:
        name, _, value = argument.partition(" ")
        if name:
            name = setting_name(name)
        if value == "default":
            self.state.changed.pop(name, None)
        elif value:
            self.state.changed[name] = setting_value(name, value.strip())
        self.state.use_settings()
        self._terminal.table([row for row in settings(self._dialogue.sampling) if name in ("", row[0])])

    def _system(self, text: str) -> None:
        if text and not self._dialogue.model.is_chat:
            raise UsageError("A base model has no system prompt.", hint="Put it into the text to continue.")
        if text:
            self._dialogue.system = "" if text == "-" else text
        self._terminal.note(f"system prompt: {harmless(self._dialogue.system) or 'none'}")

    # The model

    def _stats(self, _argument: str) -> None:
        facts = status.stats_facts(self._dialogue.last, self.state.loaded.model.stats(), resident_memory())
        self._terminal.table([(label, harmless(value)) for label, value in facts])

    def _experts(self, _argument: str) -> None:
        if not self.state.loaded.model.config.is_moe:
            raise UsageError("This model is dense, so it has no experts.")
        use = self._dialogue.expert_use
        if use is None:
            raise UsageError("No reply yet.", hint="Send a message first.")
        for line in heat_map(use, self._terminal.size()[0], unicode=self._terminal.unicode):
            self._terminal.say(line)

    def _model(self, argument: str) -> None:
        """Show the models, or continue the conversation with another one.

        The current model is unloaded first, since memory may not hold both. If the new one cannot be loaded, the
        previous one is loaded again; if that fails too, the conversation is kept without a model.
        """
        if not argument:
            known = [printable(name) for name in self._models.names()]
            self._terminal.say(printable(self.state.model_names[0]))
            self._terminal.note(f"in the store: {', '.join(known) or 'none; get one with `mixq pull SRC`'}")
            return
        self._models.check(argument)
        self._terminal.note(f"Loading {printable(argument)} …")
        former = self.state.unload()
        gc.collect()  # a model refers to itself in places, and its memory is needed now
        try:
            self.state.use(self._models.load(argument))
        except (MixqError, KeyboardInterrupt) as error:
            if isinstance(error, MixqError):
                self._terminal.error(error)
            self._terminal.warn("the model could not be loaded; loading the previous one again.")
            self.state.use(self._models.load(former))
            return
        self._welcome()


def _device(model: Model) -> str:
    device = model.placement.device
    if device == "cpu":
        return f"the CPU ({model.threads} thread{'s' if model.threads > 1 else ''})"
    return {"cuda": "the GPU", "sim": "a simulated GPU"}.get(device, device)
