"""What one looks at and turns in a model: the experts that a text is given to, and those that it is made to use.

Contract: the methods of `mixq.Model` for experiments. Everything goes through the hooks of `mixq.model.hooks`; a model
is afterwards what it was. Who computes an expert, and where, is not known here.

Axes: T tokens, L layers, E experts, A active experts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mixq.config import ModelConfig
from mixq.engine.answer import PREFILL_CHUNK, check_prompt
from mixq.errors import UsageError, printable
from mixq.kernels import reference
from mixq.measure import perplexity
from mixq.model.attention import Chunk
from mixq.model.kv_cache import KVCache
from mixq.model.mixtral import Mixtral

if TYPE_CHECKING:
    from mixq.engine.model import Model

Prompt = str | Sequence[int] | Tensor | NDArray[Any]
"""A text, or token ids."""

Drop = Collection[int | tuple[int, int]]
"""Experts that are not to be used: a number means that expert of every layer, a pair (layer, expert) this one."""


class Experiments(ABC):
    """What a `mixq.Model` is beside an answering machine.

    Attributes:
        is_forced: whether the routers are made to choose otherwise; see `force`.
    """

    config: ModelConfig
    context: int
    network: Mixtral
    is_forced = False

    @abstractmethod
    def encode(self, prompt: Prompt) -> list[int]: ...

    @abstractmethod
    def new_kv_cache(self) -> KVCache: ...

    @abstractmethod
    def forward(self, ids: Sequence[int]) -> Tensor: ...

    @overload
    def route(self, text: Prompt, *, weights: Literal[False] = ...) -> NDArray[Any]: ...
    @overload
    def route(self, text: Prompt, *, weights: Literal[True]) -> tuple[NDArray[Any], NDArray[np.float32]]: ...
    def route(self, text: Prompt, *, weights: bool = False) -> NDArray[Any] | tuple[NDArray[Any], NDArray[np.float32]]:
        """Return which experts the routers choose for each token of a text.

        Args:
            text: text (the begin token is put in front: `encode` gives the tokens of the rows) or the exact ids.
            weights: return the routers' weights too.

        Returns:
            Numbers of experts, uint8 [tokens, layers, experts a token], the favourite first; with `weights` also
            float32 of the same shape, which sums to one over the last axis.

        Raises:
            PromptError: empty, too long for the context, or text for a model without a tokenizer.
            UsageError: a dense model.
        """
        ids, topk_weights = _route(self, self.encode(text))
        return (ids, topk_weights) if weights else ids

    def logits(self, text: Prompt) -> NDArray[np.float32]:
        """Return float32 logits [tokens, vocabulary] after each token of a text; text and errors as for `route`."""
        logits: NDArray[np.float32] = self.forward(self.encode(text)).numpy()
        return logits

    def perplexity(self, text: str, *, window: int | None = None, stride: int | None = None) -> float:
        """Return the perplexity of a text, as `mixq eval ppl` measures it.

        `mixq.measure.perplexity.perplexity` takes the same window and stride, and gives the error and the distance
        from another model besides.

        Raises:
            PromptError: the text is empty, or the model has no tokenizer.
            UsageError: a window or a stride that makes no sense.
        """
        return perplexity.perplexity(cast("Model", self), text, window=window, stride=stride).perplexity

    def force(
        self,
        *,
        top_k: int | None = None,
        drop: Drop = (),
        experts: Mapping[int, Collection[int]] | None = None,
    ) -> AbstractContextManager[None]:
        """Make the routers choose otherwise inside of a `with` block, as in `with model.force(top_k=1): ...`.

        Weights are the routers' own over what is left to choose from, made to sum to one. What is read outside of the
        block (an iterator of events) is computed outside of it.

        Args:
            top_k: experts that each token uses.
            drop: experts that are not to be used: {3} in any layer, [(0, 3), (4, 1)] in layers 0 and 4.
            experts: those that a layer uses for every token, such as {2: (1, 5)}.

        Raises:
            UsageError: a dense model; layers or experts that there are not; a layer with nothing left to choose from;
                a model that is being forced already.
        """
        return _force(self, _choices(self, top_k, drop, experts or {}))


def _route(model: Experiments, ids: list[int]) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """Return the experts of each token in each layer, and their weights.

    Args:
        ids: run from an empty KV cache.

    Returns:
        Expert numbers, uint8 (uint16 of a model with more than 256 experts a layer) [T, L, A], each token's favourite
        first; weights, float32 [T, L, A].

    Raises:
        PromptError: no ids, too many for the context, or one outside the vocabulary.
        UsageError: a dense model, or layers that are made to use different numbers of experts.
    """
    config = model.config
    L = config.num_hidden_layers
    check_prompt(ids, model.context, config.vocab_size)
    seen: dict[int, tuple[Tensor, Tensor]] = {}  # by layer; a pass that is run again overwrites what it showed

    def note(layer: int, residual: Tensor, topk_ids: Tensor, topk_weights: Tensor) -> None:
        seen[layer] = topk_ids.cpu(), topk_weights.cpu()

    passes = []
    cache = model.new_kv_cache()
    with model.network.hook_router(note):
        for part in torch.split(torch.tensor(ids), PREFILL_CHUNK):
            model.network.forward([Chunk(part, cache)])
            passes.append([seen[layer] for layer in range(L)])
    counts = {topk_ids.shape[1] for topk_ids, _ in passes[0]}
    if len(counts) > 1:
        raise UsageError(
            f"The layers use {' or '.join(map(str, sorted(counts)))} experts a token: that is no array [T, L, A].",
            hint="Force the same number of experts in each layer.",
        )
    experts = torch.cat([torch.stack([topk_ids for topk_ids, _ in layers], dim=1) for layers in passes])  # [T, L, A]
    weights = torch.cat([torch.stack([topk_weights for _, topk_weights in layers], dim=1) for layers in passes])
    return experts.numpy().astype(np.uint8 if config.num_local_experts <= 256 else np.uint16), weights.numpy()


@dataclass(frozen=True, slots=True)
class _Choice:
    """What a layer's router may choose from: `allowed` bool [E], and how many it takes of them."""

    allowed: Tensor
    count: int


@contextmanager
def _force(model: Experiments, choices: Mapping[int, _Choice]) -> Iterator[None]:
    """Make the routers choose so while the context lasts."""

    def choose(layer: int, residual: Tensor, ids: Tensor, weights: Tensor) -> tuple[Tensor, Tensor] | None:
        choice = choices.get(layer)
        if choice is None:
            return None
        scores = model.network.router_logits(layer, residual)  # [T, E]
        scores = scores.masked_fill(~choice.allowed, -torch.inf)
        topk_weights, topk_ids = reference.route(scores, choice.count)
        return topk_ids, topk_weights

    if model.is_forced:
        raise UsageError(
            "The model is being forced already.", hint="Say everything in one call: model.force(top_k=1, drop={3})."
        )
    model.is_forced = True
    try:
        with model.network.hook_router(choose):
            yield
    finally:
        model.is_forced = False


def _choices(
    model: Experiments, top_k: int | None, drop: Drop, experts: Mapping[int, Collection[int]]
) -> dict[int, _Choice]:
    """Return what each layer may choose from; layers that are left alone are not among them."""
    L, E, A = model.config.num_hidden_layers, model.config.num_local_experts, model.config.num_experts_per_tok
    if not E:
        raise UsageError("This model is dense: it has no experts to force.")
    if top_k is None and not drop and not experts:
        raise UsageError("Nothing is forced.", hint="Give top_k, drop or experts, such as model.force(top_k=1).")
    if top_k is not None:
        top_k = _number(top_k, 1, E, "top_k")
    if not isinstance(experts, Mapping):
        raise UsageError("experts must say which of each layer, such as experts={3: (1, 5)}.")
    allowed = torch.ones(L, E, dtype=torch.bool)
    counts = {} if top_k is None else dict.fromkeys(range(L), top_k)
    for layer, listed in experts.items():
        layer = _number(layer, 0, L - 1, "layer")
        numbers = {_number(expert, 0, E - 1, "expert") for expert in _several(listed, f"experts of layer {layer}")}
        if not numbers:
            raise UsageError(f"Layer {layer} has to use some expert.")
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
            raise UsageError(f"Layer {layer} has no expert left to use.")
    device = model.network.kernels.device
    return {layer: _Choice(allowed[layer].to(device), min(count, left[layer])) for layer, count in counts.items()}


def _dropped(item: object, L: int, E: int) -> tuple[range, int]:
    """Return the layers in which an expert is dropped, and its number."""
    if not isinstance(item, tuple):
        return range(L), _number(item, 0, E - 1, "expert to drop")
    if len(item) != 2:
        raise UsageError(f"{printable(repr(item))} is not an expert to drop; give its number, or (layer, expert).")
    layer = _number(item[0], 0, L - 1, "layer")
    return range(layer, layer + 1), _number(item[1], 0, E - 1, "expert to drop")


def _several(items: Any, what: str) -> Iterable[Any]:
    if not isinstance(items, Collection) or isinstance(items, str | bytes | Mapping):
        raise UsageError(f"{what} must be a list or a set, not {printable(repr(items))}.")
    return items


def _number(value: Any, low: int, high: int, what: str) -> int:
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or not low <= value <= high:
        raise UsageError(f"{what} is {printable(repr(value))}; it must be a whole number from {low} to {high}.")
    return int(value)
