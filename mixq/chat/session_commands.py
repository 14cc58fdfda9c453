"""/save, /load and /clear: conversations that are kept, and the way back.

Contract: a file that cannot be loaded, and a conversation that does not fit into the context, leave everything as it
was. What /clear and /load take away, `/load -` brings back.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from mixq.chat import saved_session, status
from mixq.chat.commands import nothing_behind
from mixq.chat.conversation import show_events
from mixq.chat.safe_text import harmless
from mixq.chat.saved_session import SavedSession
from mixq.engine.sampling import SamplingParams
from mixq.errors import MixqError, UsageError, printable

if TYPE_CHECKING:
    from mixq.chat.chat import Chat

SHOWN_TURNS = 3
"""Turns of a loaded session that are shown again."""


class SessionCommands:
    """Carries them out for one chat."""

    def __init__(self, chat: Chat) -> None:
        self._chat = chat
        self._file: Path | None = None  # where the conversation was saved
        self._before: SavedSession | None = None  # what /clear and /load took away

    def clear(self, argument: str) -> None:
        nothing_behind("/clear", argument)
        self._put_aside()
        self._chat.conversation.clear()
        self._file = None
        self._chat.terminal.note("A new conversation." + self._way_back())

    def _put_aside(self) -> None:
        if self._chat.conversation.messages:
            self._before = self.as_session()

    def _way_back(self) -> str:
        return ' "/load -" goes back to the one before.' if self._before is not None else ""

    def save(self, argument: str) -> None:
        forced = argument.split(maxsplit=1)[:1] == ["-f"]
        name = argument[2:].strip() if forced else argument
        if not self._chat.conversation.messages:
            raise UsageError("There is nothing to save yet.")
        if not name and self._file is not None:
            path = self._file
        else:
            path = saved_session.session_path(name or f"{datetime.now():%Y-%m-%d-%H%M%S}")
        if path.exists() and path != self._file and not forced:
            raise UsageError(f"{printable(path)} is there already.", hint=f"/save -f {printable(name)} replaces it.")
        saved_session.save(path, self.as_session())
        self._file = path
        self._chat.terminal.note(f"Saved: {printable(path)}. /load {printable(_short_name(path))} brings it back.")

    def as_session(self) -> SavedSession:
        talk = self._chat.conversation
        params = SamplingParams.from_kwargs(**talk.sampling)
        sampling = {name: getattr(params, name) for name in saved_session.KEPT_SAMPLING if name in talk.sampling}
        return SavedSession(*self._chat.model_names, talk.system, sampling, tuple(talk.messages))

    def load(self, argument: str) -> None:
        if not argument:
            known = saved_session.names()
            raise UsageError(
                "Which one?", hint=f"Saved: {', '.join(map(printable, known[:10])) or 'none yet'}. Or name a file."
            )
        if argument == "-":
            if self._before is None:
                raise UsageError("There is no conversation before this one.")
            session, path = self._before, None
        else:
            path = saved_session.session_path(argument)
            session = saved_session.load(path)
        now, file, changed = self.as_session(), self._file, self._chat.changed
        try:
            self._go_on_from(session, path)
            self._read_again()
        except MixqError:
            self._chat.changed = changed
            self._chat.conversation.replace(now.messages, now.system)
            self._chat.use_settings()
            self._file = file
            raise
        if now.messages:
            self._before = now
        if session.model != now.model:
            self._chat.terminal.note(f"It was a conversation with {printable(session.model)}.")

    def _go_on_from(self, session: SavedSession, path: Path | None) -> None:
        self._chat.changed = dict(session.sampling)
        self._chat.use_settings()
        self._file = path
        self._chat.conversation.replace(session.messages, session.system)

    def _read_again(self) -> None:
        """Run a conversation that was loaded, so that the next message does not wait for it, and show its end."""
        talk, messages = self._chat.terminal, self._chat.conversation.messages
        with talk.replying() as cancel, talk.progress("reading the conversation") as progress:
            done = show_events(self._chat.conversation.read(cancel), lambda _: None, warn=talk.warn, progress=progress)
        earlier = len(messages) // 2 - SHOWN_TURNS
        if earlier > 0:
            talk.note(f"… {earlier} before")
        for message in messages[-2 * SHOWN_TURNS :]:
            if message.role == "user":
                talk.say(f"> {harmless(message.content)}", "dim")
            else:
                stream = talk.stream(markdown=self._chat.conversation.model.is_chat)
                stream.push(message.content)
                stream.finish()
        count = len(messages) // 2
        used = f", {done.stats.context_used} of {done.stats.context_size} tokens" if done is not None else ""
        talk.note(f"Loaded: {count} turn{'s' if count > 1 else ''}{used}.")
        if done is not None and done.reason == "cancelled":
            talk.note("What has not been read is read with the next message.")
        elif done is not None:
            advice = status.context_advice(done.stats, self._chat.loaded.model.config.max_position_embeddings)
            if advice is not None:
                talk.warn(advice)


def _short_name(path: Path) -> str:
    return path.stem if path.parent == saved_session.folder() else str(path)
