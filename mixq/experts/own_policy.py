"""Checks a user's cache policy when the model is loaded. (`ExpertCache` checks each victim that it returns.)

A policy is a class with the methods of `mixq.experts.policies.Policy`, or a subclass of one of the classes there:

    class MostRecent(mixq.Lru):
        '''Evicts the expert that was used last.'''

        def victim(self, candidates):
            return max(candidates, key=self.last_use)

    model = mixq.load(path, device="sim", vram="40MB", cache_policy=MostRecent)

Each layer gets an object: `MostRecent(layer, slots)` if the class takes these two arguments, else `MostRecent()`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, cast

from mixq.errors import UsageError, printable
from mixq.experts.policies import Policy, PolicyOfLayer

METHODS = ("used", "loaded", "evicted", "admits", "victim")
"""The methods of a policy, each with one argument; see `Policy`."""


def own_policy(make: Callable[..., Any]) -> PolicyOfLayer:
    """Return a function that creates each layer's policy.

    Args:
        make: a class, or a function that creates a policy. It is called with (layer, slots) if possible, else without
            arguments; once here, for the check.

    Raises:
        UsageError: it takes other arguments, or its result is not a `Policy`.
    """
    name = printable(getattr(make, "__name__", repr(make)))
    takes_layer = _takes(make, 2)
    if not takes_layer and not _takes(make, 0):
        raise UsageError(f"The cache policy {name} must take (layer, slots), or no arguments.")

    def checked(layer: int, slots: int) -> Policy:
        policy = cast("Policy", make(layer, slots) if takes_layer else make())
        missing = [method for method in METHODS if not callable(getattr(policy, method, None))]
        if missing:
            raise UsageError(
                f"The cache policy {name} has no {', '.join(missing)}.",
                hint=f"A policy has {', '.join(METHODS)}; a subclass of mixq.Lru has them all.",
            )
        for method in METHODS:
            if not _takes(getattr(policy, method), 1):
                what = "the candidates" if method == "victim" else "an expert"
                raise UsageError(f"The cache policy {name}: {method} must take one argument, {what}.")
        return policy

    checked.__name__ = name
    checked(0, 1)
    return checked


def _takes(function: Callable[..., Any], arguments: int) -> bool:
    """Return whether a function can be called with these arguments; True for one without a signature."""
    try:
        inspect.signature(function).bind(*range(arguments))
    except TypeError:
        return False
    except ValueError:
        return True
    return True
