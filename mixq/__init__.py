"""mixq: Mixtral 8x7B, quantized and offloaded, on the computer you have.

    import mixq

    model = mixq.load("mixtral-nl4")
    for event in model.chat([{"role": "user", "content": "What is 25 - (4 * 2) + 3?"}]):
        if isinstance(event, mixq.Token):
            print(event.text, end="")

Importing the package is fast: torch is imported with the first name that needs it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mixq.errors import MixqError

if TYPE_CHECKING:
    from mixq.engine.events import Done, Notice, PromptProgress, Stats, Token
    from mixq.engine.model import Model, load
    from mixq.engine.session import Session
    from mixq.experts.policies import Lru, Policy
    from mixq.text.chat_template import Message

__all__ = [
    "Done",
    "Lru",
    "Message",
    "MixqError",
    "Model",
    "Notice",
    "Policy",
    "PromptProgress",
    "Session",
    "Stats",
    "Token",
    "load",
]

_HOMES = {
    "mixq.engine.events": ("Done", "Notice", "PromptProgress", "Stats", "Token"),
    "mixq.engine.model": ("Model", "load"),
    "mixq.engine.session": ("Session",),
    "mixq.experts.policies": ("Lru", "Policy"),
    "mixq.text.chat_template": ("Message",),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module 'mixq' has no attribute {name!r}")
