"""Hooks: a user's functions that receive a forward pass layer by layer, and may replace choices and outputs.

Contract: a hook is called once per layer of each forward pass, in order, in the thread that runs the model. A pass runs
several tokens together: a part of a prompt, or the next token of one or more sequences. A pass that runs out of the
accelerator's memory is repeated from layer 0. Several hooks are called in the order in which they were set, each with
the result of the previous one. While a hook is set, an accelerator's captured steps are not used, and neither is the
CPU's single call for a few tokens.

The tensors belong to the network, on its device: do not change them, but return others. They were created in torch's
inference mode: to change one later, `clone` it outside of that mode.

Axes: T tokens of the pass, E experts, A active experts, D hidden.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from mixq.errors import UsageError

RouterHook = Callable[[int, Tensor, Tensor, Tensor], tuple[Tensor, Tensor] | None]
"""(layer, residual [T, D], ids int64 [T, A], weights float32 [T, A]) -> None, or other ids and weights.

`residual` is the hidden state before the norm of the router's input. The ids of a token are distinct, the most
likely first. Replacements may have any number of experts, the same for each token of a pass.
"""

ExpertsHook = Callable[[int, Tensor, Tensor], Tensor | None]
"""(layer, x [T, D], output [T, D]) -> None, or another output.

`x` is the experts' input, `output` their weighted sum, which is added to the hidden state. In a dense model they are
the input and output of the feed-forward block.
"""


class Handle(AbstractContextManager["Handle"]):
    """A hook, set until `remove` is called or a `with` block ends."""

    def __init__(self, hooks: dict[Handle, Any]) -> None:
        self._hooks = hooks

    def remove(self) -> None:
        """Remove the hook; calling it again changes nothing."""
        self._hooks.pop(self, None)

    def __exit__(self, *error: object) -> None:
        self.remove()


class Hooks:
    """The hooks of a network with `experts` in each layer, 0 for a dense model."""

    def __init__(self, experts: int) -> None:
        self._E = experts
        self.router: dict[Handle, RouterHook] = {}
        self.experts: dict[Handle, ExpertsHook] = {}

    def __bool__(self) -> bool:
        """Return whether any hook is set."""
        return bool(self.router or self.experts)

    def add_router(self, hook: RouterHook) -> Handle:
        """Set a hook on the routers' choices.

        Raises:
            UsageError: a dense model, which has no routers.
        """
        if not self._E:
            raise UsageError(
                "This model is dense, so it has no routers to hook.",
                hint="Use hook_experts for its feed-forward blocks.",
            )
        handle = Handle(self.router)
        self.router[handle] = hook
        return handle

    def add_experts(self, hook: ExpertsHook) -> Handle:
        """Set a hook on the experts' outputs."""
        handle = Handle(self.experts)
        self.experts[handle] = hook
        return handle

    def routed(self, layer: int, residual: Tensor, ids: Tensor, weights: Tensor) -> tuple[Tensor, Tensor] | None:
        """Call the routers' hooks with a choice; return ids and weights [T, A] if one of them replaced it.

        Raises:
            UsageError: a hook returned ids or weights that cannot be used.
        """
        replaced = None
        for hook in tuple(self.router.values()):
            result = hook(layer, residual, ids, weights)
            if result is not None:
                replaced = ids, weights = self._check_choice(result, layer, ids)
        return replaced

    def answered(self, layer: int, x: Tensor, output: Tensor) -> Tensor:
        """Call the experts' hooks with a layer's output [T, D]; return the output, replaced or not.

        Raises:
            UsageError: a hook returned an output that cannot be used.
        """
        for hook in tuple(self.experts.values()):
            other = hook(layer, x, output)
            if other is None:
                continue
            _check_tensor(other, output.dtype, output.device, f"The experts' hook of layer {layer}: its output")
            if other.shape != output.shape:
                raise UsageError(
                    f"The experts' hook of layer {layer} returned {list(other.shape)}; it must be {list(output.shape)}."
                )
            output = other.contiguous()
        return output

    def _check_choice(self, result: object, layer: int, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Check every id: kernels use it as an index into memory."""
        whose = f"The router's hook of layer {layer}"
        if not isinstance(result, tuple) or len(result) != 2:
            raise UsageError(f"{whose} returned {type(result).__name__}; it must be None or a tuple (ids, weights).")
        ids, weights = result
        _check_tensor(ids, torch.int64, chosen.device, f"{whose}: its ids")
        _check_tensor(weights, torch.float32, chosen.device, f"{whose}: its weights")
        T = chosen.shape[0]
        if ids.dim() != 2 or ids.shape != weights.shape or len(ids) != T or not 1 <= ids.shape[1] <= self._E:
            raise UsageError(
                f"{whose} returned ids {list(ids.shape)} and weights {list(weights.shape)}; both must be "
                f"[{T}, A], with A from 1 to {self._E}."
            )
        ordered = ids.sort(-1).values  # [T, A]
        if bool((ordered[:, 0] < 0).any()) or bool((ordered[:, -1] >= self._E).any()):
            raise UsageError(f"{whose} chose an expert that does not exist; they are 0 to {self._E - 1}.")
        if bool((ordered[:, 1:] == ordered[:, :-1]).any()):
            raise UsageError(f"{whose} chose an expert twice for one token.")
        return ids.contiguous(), weights.contiguous()


def _check_tensor(value: object, dtype: torch.dtype, device: torch.device, what: str) -> None:
    if not isinstance(value, Tensor):
        raise UsageError(f"{what} must be a tensor, not {type(value).__name__}.")
    if value.dtype != dtype or value.device != device:
        raise UsageError(f"{what} must be {dtype} on {device}, not {value.dtype} on {value.device}.")
