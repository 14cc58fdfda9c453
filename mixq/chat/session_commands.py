"""/save, /load and /clear: saved conversations, and how to return to the previous one.

Contract: a file that cannot be loaded, and a conversation that does not fit into the context, change nothing.
`/load -` brings back the conversation that /clear or /load replaced.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from mixq.chat import saved_session, status
from mixq.chat.dialogue import show_events
from mixq.chat.safe_text import harmless
from mixq.chat.saved_session import SavedSession
from mixq.chat.state import ChatState
from mixq.engine.sampling import SamplingParams
from mixq.errors import MixqError, UsageError, printable

SHOWN_TURNS = 3
"""Turns of a loaded session that are shown again."""


class SessionCommands:
    """The session commands of a chat."""

    def __init__(self, state: ChatState) -> None:
        self._state = state
        self._terminal = state.terminal
        self._dialogue = state.dialogue
        self._file: Path | None = None  # where the conversation was saved
        self._previous: SavedSession | None = None  # what /clear and /load replaced

    def clear(self, _argument: str) -> None:
        if self._dialogue.messages:
            self._previous = self._as_session()
        self._dialogue.clear()
        self._file = None
        way_back = ' "/load -" returns to the previous one.' if self._previous is not None else ""
        self._terminal.note(f"A new conversation.{way_back}")

    def save(self, argument: str) -> None:
        forced = argument.split(maxsplit=1)[:1] == ["-f"]
        name = argument[2:].strip() if forced else argument
        if not self._dialogue.messages:
            raise UsageError("Nothing to save yet.")
        if not name and self._file is not None:
            path = self._file
        else:
            path = saved_session.session_path(name or f"{datetime.now():%Y-%m-%d-%H%M%S}")
        if path.exists() and path != self._file and not forced:
            raise UsageError(f"{printable(path)} exists already.", hint=f"/save -f {printable(name)} overwrites it.")
        saved_session.save(path, self._as_session())
        self._file = path
        short = path.stem if path.parent == saved_session.folder() else path
        self._terminal.note(f"Saved: {printable(path)}. /load {printable(short)} loads it.")

    def load(self, argument: str) -> None:
        path: Path | None = None
        if not argument:
            known = ", ".join(map(printable, saved_session.names()[:10])) or "none yet"
            raise UsageError("/load needs a name or a file.", hint=f"Saved: {known}.")
        if argument != "-":
            path = saved_session.session_path(argument)
            session = saved_session.load(path)
        elif self._previous is not None:
            session = self._previous
        else:
            raise UsageError("No previous conversation.")
        now, changed = self._as_session(), self._state.changed
        try:
            self._replace(session)
            self._read_again()
        except MixqError:
            self._replace(now)
            self._state.changed = changed
            self._state.use_settings()
            raise
        self._file = path
        if now.messages:
            self._previous = now
        if session.model != now.model:
            self._terminal.note(f"It was a conversation with {printable(session.model)}.")

    def _as_session(self) -> SavedSession:
        dialogue = self._dialogue
        params = SamplingParams.from_kwargs(**dialogue.sampling)
        sampling = {name: getattr(params, name) for name in saved_session.KEPT_SAMPLING if name in dialogue.sampling}
        return SavedSession(*self._state.model_names, dialogue.system, sampling, tuple(dialogue.messages))

    def _replace(self, session: SavedSession) -> None:
        self._state.changed = dict(session.sampling)
        self._state.use_settings()
        self._dialogue.replace(session.messages, session.system)

    def _read_again(self) -> None:
        """Run a loaded conversation, so that the next message need not wait for it, and show its last turns."""
        terminal, messages = self._terminal, self._dialogue.messages
        with terminal.replying() as cancel, terminal.progress("reading the conversation") as progress:
            done = show_events(self._dialogue.read(cancel), lambda _: None, warn=terminal.warn, progress=progress)
        count = len(messages) // 2
        if count > SHOWN_TURNS:
            terminal.note(f"… {count - SHOWN_TURNS} earlier turns")
        for message in messages[-2 * SHOWN_TURNS :]:
            if message.role == "user":
                terminal.say(f"> {harmless(message.content)}", "dim")
            else:
                stream = terminal.stream(markdown=self._dialogue.model.is_chat)
                stream.push(message.content)
                stream.finish()
        used = f", {done.stats.context_used} of {done.stats.context_size} tokens" if done is not None else ""
        terminal.note(f"Loaded: {count} turn{'s' if count > 1 else ''}{used}.")
        if done is None:
            return
        if done.reason == "cancelled":
            terminal.note("Interrupted; the rest of the conversation is processed with your next message.")
            return
        advice = status.context_advice(done.stats, self._state.loaded.model.config.max_position_embeddings)
        if advice is not None:
            terminal.warn(advice)
