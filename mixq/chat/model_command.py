"""/model: another model in the middle of a conversation.

Contract: the conversation goes on with the new model. The former one is let go first, since both may not fit into
memory; where the new one cannot be loaded, the former is loaded again. Where even that fails the conversation is kept,
and waits for a model.
"""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

from mixq.errors import MixqError, printable

if TYPE_CHECKING:
    from mixq.chat.chat import Chat, Models


class ModelCommand:
    """Carries it out for one chat.

    Args:
        models: where models come from.
    """

    def __init__(self, chat: Chat, models: Models) -> None:
        self._chat = chat
        self._models = models

    def obey(self, argument: str) -> None:
        if not argument:
            known = [printable(name) for name in self._models.names()]
            self._chat.terminal.say(printable(self._chat.model_names[0]))
            self._chat.terminal.note(f"in the store: {', '.join(known) or 'none; `mixq pull` makes one'}")
            return
        self._models.check(argument)
        self._chat.terminal.note(f"Loading {printable(argument)} …")
        before = self._chat.let_go()
        gc.collect()  # a model refers to itself in places, and its memory is needed now
        try:
            self._chat.use(self._models.load(argument))
        except (MixqError, KeyboardInterrupt) as error:
            if isinstance(error, MixqError):
                self._chat.terminal.error(error)
            self._chat.terminal.warn("the model was not loaded; going back to the one before.")
            self._chat.use(self._models.load(before))
            return
        self._chat.welcome()
