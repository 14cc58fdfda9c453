"""The chat at a terminal: read a line, obey it if it is a command, else answer it.

Contract: `Chat.run` returns when the user leaves. A failure of one turn or command is shown, the conversation is then
as it was before, and the chat goes on. What a model or a file says passes `safe_text` before it is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mixq.chat import status
from mixq.chat.commands import COMMANDS, KEYS, Order, nothing_behind, setting_name, setting_value, settings, understand
from mixq.chat.conversation import Conversation, no_model, show_events
from mixq.chat.heat_map import heat_map
from mixq.chat.input import Interrupted
from mixq.chat.model_command import ModelCommand
from mixq.chat.safe_text import harmless
from mixq.chat.session_commands import SessionCommands
from mixq.chat.terminal import Terminal, edited_in_editor
from mixq.config import format_size
from mixq.engine.events import Done, Event
from mixq.errors import MixqError, UsageError, printable
from mixq.system.memory import resident_memory

if TYPE_CHECKING:
    from mixq.engine.model import Model


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model to chat with.

    Attributes:
        name: as it was asked for; None for the demo model.
        model: itself.
        sampling: what it wishes, and what the command line says.
    """

    name: str | None
    model: Model
    sampling: Mapping[str, Any]

    @property
    def title(self) -> str:
        """What it is called on the screen."""
        return "the demo model" if self.name is None else printable(Path(self.name).name or self.name)


class Models(Protocol):
    """Where models come from."""

    def names(self) -> list[str]:
        """Return the names of the store."""
        ...

    def check(self, name: str) -> None:
        """Raise a MixqError where there is no such model, or it can be seen to be damaged."""
        ...

    def load(self, name: str | None) -> Loaded:
        """Load a model."""
        ...


class Prompt(Protocol):
    """Where lines come from: `mixq.chat.input.LineInput`."""

    def read(self, default: str = "") -> str: ...


class Chat:
    """Commands and turns of one chat.

    Args:
        loaded: the model to begin with.
        models: for /model.
        terminal: to write to.
        system: system text, "" for none.
    """

    def __init__(self, loaded: Loaded, models: Models, terminal: Terminal, system: str = "") -> None:
        self._loaded: Loaded | None = loaded
        self.terminal = terminal
        self.changed: dict[str, Any] = {}  # sampling parameters, by /set and /load
        self.conversation = Conversation(loaded.model, loaded.sampling, system)
        self.model_names = _names(loaded)
        self._prompt: Prompt | None = None
        self.sessions = SessionCommands(self)
        self._commands: dict[str, Callable[[str], None]] = {
            "/help": self._help,
            "/set": self._set,
            "/system": self._system,
            "/regen": self._regenerate,
            "/edit": self._edit,
            "/save": self.sessions.save,
            "/load": self.sessions.load,
            "/clear": self.sessions.clear,
            "/stats": self._stats,
            "/experts": self._experts,
            "/model": ModelCommand(self, models).obey,
        }
        assert {*self._commands, "/exit"} == {command.name for command in COMMANDS}

    @property
    def loaded(self) -> Loaded:
        """The model.

        Raises:
            UsageError: the last one is gone, and no other could be loaded.
        """
        if self._loaded is None:
            raise no_model()
        return self._loaded

    def let_go(self) -> str | None:
        """Close the model, so that its memory is free, and return its name; nothing where there is none."""
        if self._loaded is None:
            return None
        name = self._loaded.name
        self.conversation.let_go()
        self._loaded.model.close()
        self._loaded = None
        return name

    def use(self, loaded: Loaded) -> None:
        """Go on with another model."""
        self._loaded = loaded
        self.model_names = _names(loaded)
        self.conversation.use_model(loaded.model)
        self.use_settings()

    def status_line(self, width: int) -> str:
        """Return the figures that stand below the prompt."""
        talk = self.conversation
        if self._loaded is None:
            return "no model"[:width]
        return status.toolbar(talk.last, talk.context_used, self.loaded.model.stats(), resident_memory(), width)

    def run(self, prompt: Prompt) -> None:
        """Read and answer until the user leaves."""
        self._prompt = prompt
        self.welcome()
        leaving = False
        while True:
            try:
                line = prompt.read()
            except EOFError:
                return
            except Interrupted:
                if leaving:
                    return
                self.terminal.note("Ctrl-C again leaves, and so does Ctrl-D.")
                leaving = True
                continue
            leaving = False
            try:
                meant = understand(line)
                if meant == Order("/exit", ""):
                    return
                self._follow(meant)
            except MixqError as error:
                self.terminal.error(error)
                self.terminal.say()
            except KeyboardInterrupt as interrupt:
                if type(interrupt) is not KeyboardInterrupt:  # SIGTERM, as the command line raises it
                    raise
                if self._loaded is not None:
                    self.conversation.use_model(self._loaded.model)  # what is in the KV cache is not known
                self.terminal.note("[given up]")

    def welcome(self) -> None:
        model, talk = self.loaded.model, self.terminal
        template = model.template
        what = f"{self.loaded.title} · {format_size(model.folder.nbytes)} on {_device(model)}"
        parts = [
            status.Part(what, what, 9),
            *status.memory_parts(model.stats(), resident_memory()),
            status.Part(f"context {model.context}", f"ctx {model.context}", 8),
        ]
        talk.say(status.fitted(parts, talk.size()[0]))
        for line in model.notices():
            talk.warn(harmless(line))
        if model.is_chat:
            talk.note(f"template {template.name}: {harmless(template.why)}")
        else:
            talk.say("A base model: it does not chat, it goes on from the text that you type.", "bold")
            talk.note(f"{harmless(template.why)}; --template says otherwise")
        talk.note("/help for commands · Alt-Enter for a new line · Ctrl-C stops · Ctrl-D leaves")
        talk.say()

    def _follow(self, meant: Order | str | None) -> None:
        if isinstance(meant, str):
            self._answer(lambda cancel: self.conversation.ask(meant, cancel))
        elif meant is not None:
            if meant.name == "/exit":
                raise UsageError("/exit takes nothing behind it.")
            self._commands[meant.name](meant.argument)
            if meant.name not in ("/regen", "/edit"):
                self.terminal.say()

    # Turns

    def _answer(self, ask: Callable[[Any], Iterator[Event]]) -> None:
        """Show a reply while it comes, and what there is to say about it."""
        warnings: list[str] = []
        stream = self.terminal.stream(markdown=self.conversation.model.is_chat)
        with self.terminal.replying() as cancel, self.terminal.progress("reading") as progress:
            try:
                done = show_events(ask(cancel), stream.push, warn=warnings.append, progress=progress)
            finally:
                stream.finish()
        assert done is not None, "a reply ends with Done"
        for line in warnings:
            self.terminal.warn(harmless(line))
        self._report(done)

    def _report(self, done: Done) -> None:
        ending = {
            "length": "[ended by max_tokens]",
            "context": "[the context is full]",
            "cancelled": "[stopped]",
        }.get(done.reason)
        if not done.text.strip():
            ending = f"{ending or '[no reply]'} The message is taken back."
        if ending is not None:
            self.terminal.note(ending)
        self.terminal.note(status.fitted(status.reply_parts(done), self.terminal.size()[0] - 1))
        advice = status.context_advice(done.stats, self.loaded.model.config.max_position_embeddings)
        for line in (advice, self.loaded.model.memory_gap()):
            if line is not None:
                self.terminal.warn(line)
        self.terminal.say()

    def _regenerate(self, argument: str) -> None:
        nothing_behind("/regen", argument)
        if not self.conversation.messages:
            raise UsageError("There is no reply to replace yet.")
        if self.conversation.is_greedy:
            self.terminal.note("At temperature 0 a reply stays the same; /set temperature 0.7 gives others.")
        self._answer(self.conversation.regenerate)

    def _edit(self, argument: str) -> None:
        nothing_behind("/edit", argument)
        said = self.conversation.last_question
        if said is None:
            raise UsageError("There is no message to change yet.")
        assert self._prompt is not None
        try:
            text = edited_in_editor(said)
            if text is None:
                text = self._prompt.read(default=said)
            else:
                self.terminal.say(harmless(text), "dim")
        except (EOFError, Interrupted):
            text = ""
        if not text.strip():
            self.terminal.note("Nothing is changed.")
            return
        changed = text
        self._answer(lambda cancel: self.conversation.edit(changed, cancel))

    # What a conversation is made of

    def _help(self, argument: str) -> None:
        word = f"/{argument.lstrip('/')}" if argument else ""
        shown = [command for command in COMMANDS if word in ("", command.name)] or list(COMMANDS)
        rows = [(f"{c.name} {c.arguments}".rstrip(), c.summary) for c in shown]
        self.terminal.table([*rows, *(KEYS if len(shown) > 1 else ())])

    def _set(self, argument: str) -> None:
        name, _, value = argument.partition(" ")
        if name:
            name = setting_name(name)
        if value == "default":
            self.changed.pop(name, None)
        elif value:
            self.changed[name] = setting_value(name, value.strip())
        self.use_settings()
        self.terminal.table([row for row in settings(self.conversation.sampling) if name in ("", row[0])])

    def use_settings(self) -> None:
        self.conversation.sampling = {**self.loaded.sampling, **self.changed}

    def _system(self, text: str) -> None:
        if text and not self.conversation.model.is_chat:
            raise UsageError("A base model has no system text.", hint="Put it into the text that it goes on from.")
        if text:
            self.conversation.system = "" if text == "-" else text
        self.terminal.note(f"system text: {harmless(self.conversation.system) or 'none'}")

    # The model

    def _stats(self, argument: str) -> None:
        nothing_behind("/stats", argument)
        facts = status.stats_facts(self.conversation.last, self.loaded.model.stats(), resident_memory())
        self.terminal.table([(label, harmless(value)) for label, value in facts])

    def _experts(self, argument: str) -> None:
        nothing_behind("/experts", argument)
        if not self.loaded.model.config.is_moe:
            raise UsageError("This model is dense: every token goes through all of it, there are no experts.")
        use = self.conversation.expert_use
        if use is None:
            raise UsageError("There is no reply yet.", hint="Say something first.")
        for line in heat_map(use, self.terminal.size()[0], unicode=self.terminal.unicode):
            self.terminal.say(line)


def _names(loaded: Loaded) -> tuple[str, str]:
    """Return where the model lies, and the name of its chat format: what a saved session says of it."""
    return str(loaded.model.folder.path), loaded.model.template.name


def _device(model: Model) -> str:
    device = model.placement.device
    threads = f"{model.threads} thread{'s' if model.threads > 1 else ''}"
    return (
        f"the CPU ({threads})" if device == "cpu" else {"cuda": "the GPU", "sim": "a simulated GPU"}.get(device, device)
    )
