"""Experiments with a loaded model: the experts that its routers choose, and the effect of other choices.

    with force(model, drop={3}):
        print(route(model, "Bonjour !"), logits(model, "Bonjour !"))

Contract: uses the hooks of `mixq.model.hooks`, on any device; afterwards the model is unchanged.
Perplexity is measured by `mixq.measure.perplexity`.

Axes: T tokens, L layers, E experts, A active experts.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal, overload
from weakref import WeakSet

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mixq.config import PREFILL_CHUNK
from mixq.engine.answer import check_prompt
from mixq.engine.model import Model
from mixq.engine.prompting import TextOrIds
from mixq.errors import Fields, UsageError, printable
from mixq.kernels import reference
from mixq.model.attention import Chunk

Drop = Collection[int | tuple[int, int]]
"""Disabled experts: a number is an expert of every layer, a pair (layer, expert) of one layer."""

Choice = tuple[Tensor, int]
"""The experts that a layer's router may choose, bool [E], and how many it chooses."""

_forced: WeakSet[Model] = WeakSet()


@overload
def route(model: Model, text: TextOrIds, *, weights: Literal[False] = ...) -> NDArray[Any]: ...
@overload
def route(model: Model, text: TextOrIds, *, weights: Literal[True]) -> tuple[NDArray[Any], NDArray[np.float32]]: ...
def route(
    model: Model, text: TextOrIds, *, weights: bool = False
) -> NDArray[Any] | tuple[NDArray[Any], NDArray[np.float32]]:
    """Return the experts that the routers choose for each token of a text.

    Args:
        text: text (`model.encode` returns its tokens, with the BOS token) or token ids.
        weights: return the routers' weights too.

    Returns:
        Expert numbers, uint8 (uint16 for a model with more than 256 experts a layer) [T, L, A], the largest weight
        first; with `weights` also float32 [T, L, A], which sums to one over the last axis.

    Raises:
        PromptError: empty, too long for the context, an id outside the vocabulary, or text for a model without a
            tokenizer.
        UsageError: a dense model, or layers that are forced to use different numbers of experts.
    """
    ids = model.encode(text)
    check_prompt(ids, model.context, model.config.vocab_size)
    chosen: dict[int, tuple[Tensor, Tensor]] = {}  # by layer; a repeated forward pass overwrites its entries

    def note(layer: int, residual: Tensor, topk_ids: Tensor, topk_weights: Tensor) -> None:
        chosen[layer] = topk_ids.cpu(), topk_weights.cpu()

    passes = []
    cache = model.new_kv_cache()
    with model.network.hook_router(note):
        for part in torch.split(torch.tensor(ids), PREFILL_CHUNK):
            model.network.forward([Chunk(part, cache)])
            passes.append([chosen[layer] for layer in range(model.config.num_hidden_layers)])
    counts = {topk_ids.shape[1] for topk_ids, _ in passes[0]}
    if len(counts) > 1:
        raise UsageError(
            f"The layers use {' or '.join(map(str, sorted(counts)))} experts per token; the result needs the same "
            "number in all layers.",
            hint="Force the same number of experts in each layer.",
        )
    experts, shares = (
        torch.cat([torch.stack([layer[i] for layer in layers], dim=1) for layers in passes]).numpy()  # [T, L, A]
        for i in (0, 1)
    )
    experts = experts.astype(np.uint8 if model.config.num_local_experts <= 256 else np.uint16)
    return (experts, shares) if weights else experts


def logits(model: Model, text: TextOrIds) -> NDArray[np.float32]:
    """Return float32 logits [T, vocabulary] after each token of a text; text and errors as for `route`."""
    found: NDArray[np.float32] = model.forward(model.encode(text)).numpy()
    return found


def force(
    model: Model,
    *,
    top_k: int | None = None,
    drop: Drop = (),
    experts: Mapping[int, Collection[int]] | None = None,
) -> AbstractContextManager[None]:
    """Restrict the routers' choices inside a `with` block, as in `with force(model, top_k=1): ...`.

    The routers' weights of the remaining experts are scaled to sum to one. An iterator of events runs the model while
    it is read, so read it inside the block.

    Args:
        top_k: experts that each token uses.
        drop: experts to disable: {3} in all layers, [(0, 3), (4, 1)] in layers 0 and 4.
        experts: the experts that a layer uses for every token, such as {2: (1, 5)}.

    Raises:
        UsageError: a dense model; an unknown layer or expert; a layer without remaining experts; a nested `force`.
    """
    return _force(model, _choices(model, top_k, drop, experts or {}))


@contextmanager
def _force(model: Model, choices: Mapping[int, Choice]) -> Iterator[None]:
    def choose(layer: int, residual: Tensor, ids: Tensor, weights: Tensor) -> tuple[Tensor, Tensor] | None:
        if layer not in choices:
            return None
        allowed, count = choices[layer]
        scores = model.network.router_logits(layer, residual).masked_fill(~allowed, -torch.inf)  # [T, E]
        topk_weights, topk_ids = reference.route(scores, count)
        return topk_ids, topk_weights

    if model in _forced:
        raise UsageError(
            "The model's experts are already forced.", hint="Use one call: force(model, top_k=1, drop={3})."
        )
    _forced.add(model)
    try:
        with model.network.hook_router(choose):
            yield
    finally:
        _forced.discard(model)


def _choices(model: Model, top_k: int | None, drop: Drop, experts: Mapping[int, Collection[int]]) -> dict[int, Choice]:
    """Return what each restricted layer may choose from."""
    L, E, A = model.config.num_hidden_layers, model.config.num_local_experts, model.config.num_experts_per_tok
    if not E:
        raise UsageError("This model is dense, so it has no experts to force.")
    if top_k is None and not drop and not experts:
        raise UsageError("force has no restriction.", hint="Use top_k, drop or experts, such as force(model, top_k=1).")
    if top_k is not None:
        top_k = _number(top_k, 1, E, "top_k")
    if not isinstance(experts, Mapping):
        raise UsageError("experts must map a layer to its experts, such as experts={3: (1, 5)}.")
    allowed = torch.ones(L, E, dtype=torch.bool)
    counts = {} if top_k is None else dict.fromkeys(range(L), top_k)
    for layer, listed in experts.items():
        layer = _number(layer, 0, L - 1, "layer")
        numbers = {_number(expert, 0, E - 1, "expert") for expert in _several(listed, f"experts of layer {layer}")}
        if not numbers:
            raise UsageError(f"Layer {layer} needs at least one expert.")
        allowed[layer] = torch.tensor([expert in numbers for expert in range(E)])
        counts[layer] = min(top_k or E, len(numbers))
    for item in _several(drop, "drop"):
        layers, expert = _dropped(item, L, E)
        for layer in layers:
            allowed[layer, expert] = False
            counts.setdefault(layer, A)
    left = allowed.sum(-1).tolist()
    for layer in counts:
        if not left[layer]:
            raise UsageError(f"Layer {layer} has no expert left.")
    device = model.network.kernels.device
    return {layer: (allowed[layer].to(device), min(count, left[layer])) for layer, count in counts.items()}


def _dropped(item: object, L: int, E: int) -> tuple[range, int]:
    """Return the layers in which an expert is dropped, and its number."""
    if not isinstance(item, tuple):
        return range(L), _number(item, 0, E - 1, "expert to drop")
    if len(item) != 2:
        raise UsageError(f"{printable(repr(item))} is not an expert to drop; use its number, or (layer, expert).")
    layer = _number(item[0], 0, L - 1, "layer")
    return range(layer, layer + 1), _number(item[1], 0, E - 1, "expert to drop")


def _several(items: Any, what: str) -> Collection[Any]:
    if not isinstance(items, Collection) or isinstance(items, str | bytes | Mapping):
        raise UsageError(f"{what} must be a list or a set, not {printable(repr(items))}.")
    return items


def _number(value: Any, low: int, high: int, what: str) -> int:
    value = int(value) if isinstance(value, np.integer) else value
    return Fields({what: value}, error=UsageError).integer(what, low, high)
