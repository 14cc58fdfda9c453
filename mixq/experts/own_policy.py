"""A cache policy of a user's: looked at when the model is loaded, and each time that it names an expert.

A policy is a class with the methods of `mixq.experts.policies.Policy`, or one of the classes there with a method of its
own:

    class MostRecent(mixq.Lru):
        '''Whoever came last goes first.'''

        def victim(self, candidates):
            return max(candidates, key=self.last_use)

    model = mixq.load(path, device="sim", vram="40MB", cache_policy=MostRecent)

Each layer gets an object: `MostRecent(layer, slots)` where the class takes these two, else `MostRecent()`.

Contract: what a policy answers is checked, what it does meanwhile is its own business.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from typing import Any

from mixq.errors import UsageError, printable
from mixq.experts.policies import Policy, PolicyOfLayer

METHODS = ("used", "loaded", "evicted", "admits", "victim")
"""What a policy answers to, each with one argument; see `Policy`."""


def own_policy(make: Callable[..., Any]) -> PolicyOfLayer:
    """Return what makes each layer's policy.

    Args:
        make: a class, or a function that makes a policy. It is called with (layer, slots) if it can be, else with
            nothing; once more than there are layers, to see what it makes.

    Raises:
        UsageError: it takes something else, or what it makes is no `Policy`.
    """
    name = printable(getattr(make, "__name__", repr(make)))
    takes_layer = _takes(make, 2)
    if not takes_layer and not _takes(make, 0):
        raise UsageError(f"The cache policy {name} must take (layer, slots), or nothing.")

    def checked(layer: int, slots: int) -> Policy:
        policy = make(layer, slots) if takes_layer else make()
        missing = [method for method in METHODS if not callable(getattr(policy, method, None))]
        if missing:
            raise UsageError(
                f"The cache policy {name} has no {', '.join(missing)}.",
                hint=f"A policy has {', '.join(METHODS)}; derive it from mixq.Lru to have them all.",
            )
        for method in METHODS:
            if not _takes(getattr(policy, method), 1):
                what = "the candidates" if method == "victim" else "an expert"
                raise UsageError(f"The cache policy {name}: {method} must take one argument, {what}.")
        return _Own(policy, name)

    checked.__name__ = name
    checked(0, 1)
    return checked


def _takes(function: Callable[..., Any], arguments: int) -> bool:
    """Return whether a function can be called with so many; one without a signature is believed."""
    try:
        inspect.signature(function).bind(*range(arguments))
    except TypeError:
        return False
    except ValueError:
        return True
    return True


class _Own:
    """Whom the policy names is looked at before a slot is emptied."""

    def __init__(self, policy: Policy, name: str) -> None:
        self._policy, self._name = policy, name

    def used(self, expert: int) -> None:
        self._policy.used(expert)

    def loaded(self, expert: int) -> None:
        self._policy.loaded(expert)

    def evicted(self, expert: int) -> None:
        self._policy.evicted(expert)

    def admits(self, expert: int) -> bool:
        return bool(self._policy.admits(expert))

    def victim(self, candidates: Collection[int]) -> int:
        named = self._policy.victim(candidates)
        if named not in candidates:
            raise UsageError(
                f"The cache policy {self._name}: victim returned {printable(repr(named))}; "
                f"it must be one of {', '.join(map(str, candidates))}."
            )
        return named
