"""The state of a chat that commands and turns share: model, dialogue, settings, terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixq.chat.dialogue import Dialogue, no_model
from mixq.errors import printable
from mixq.formats import store
from mixq.formats.folder import ModelFolder
from mixq.system import paths

if TYPE_CHECKING:
    from mixq.chat.terminal import Terminal
    from mixq.engine.model import Model


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model to chat with."""

    name: str | None  # as the user gave it; None for the demo model
    model: Model  # the model
    sampling: Mapping[str, Any]  # its defaults, changed by the command line

    @property
    def title(self) -> str:
        """The name to show."""
        return "the demo model" if self.name is None else printable(Path(self.name).name or self.name)


class Models:
    """The models that a chat can switch to.

    Args:
        load: loads a model by its name; None is the demo model.
    """

    def __init__(self, load: Callable[[str | None], Loaded]) -> None:
        self.load = load

    def names(self) -> list[str]:
        """Return the names in the store."""
        return store.names()

    def check(self, name: str) -> None:
        """Raise a MixqError where the model does not exist or is visibly damaged."""
        ModelFolder.open(paths.resolve_model(name))


class ChatState:
    """The state of one chat.

    Attributes:
        terminal: to write to.
        dialogue: messages so far.
        changed: sampling parameters set by /set and /load.
        model_names: the model's path and chat template, as a saved session names them.
    """

    def __init__(self, loaded: Loaded, terminal: Terminal, system: str = "") -> None:
        self._loaded: Loaded | None = loaded
        self.terminal = terminal
        self.dialogue = Dialogue(loaded.model, loaded.sampling, system)
        self.changed: dict[str, Any] = {}
        self.model_names = _names(loaded)

    @property
    def has_model(self) -> bool:
        """Whether a model is loaded: false if /model could load neither the new nor the previous one."""
        return self._loaded is not None

    @property
    def loaded(self) -> Loaded:
        """The model.

        Raises:
            UsageError: no model is loaded.
        """
        if self._loaded is None:
            raise no_model()
        return self._loaded

    def unload(self) -> str | None:
        """Close the model, which frees its memory, and return its name."""
        if self._loaded is None:
            return None
        name = self._loaded.name
        self.dialogue.unload()
        self._loaded.model.close()
        self._loaded = None
        return name

    def use(self, loaded: Loaded) -> None:
        """Continue with another model."""
        self._loaded = loaded
        self.model_names = _names(loaded)
        self.dialogue.use_model(loaded.model)
        self.use_settings()

    def use_settings(self) -> None:
        """Apply `changed` to the model's sampling parameters."""
        self.dialogue.sampling = {**self.loaded.sampling, **self.changed}


def _names(loaded: Loaded) -> tuple[str, str]:
    return str(loaded.model.folder.path), loaded.model.template.name
