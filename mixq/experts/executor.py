"""Runs the chosen experts of one layer and sums their answers: in place on the CPU, or shared with an accelerator.

Contract: which expert is chosen is the router's business, how a product is computed the kernels', and where each expert
is computed the scheduler's. `CpuExperts` computes in host memory, over the mapped weights. `LayerExperts` computes what
is in a slot of the accelerator there and, at the same time, the rest on the CPU or after a copy, as planned.

Placement does not change the answer: a row's experts are summed in the router's order whoever computed them, so a
device whose kernels have the CPU's bits gives the CPU's bits.

Axes: T tokens, E experts, A active experts, D hidden.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from mixq.experts.accelerators.interface import Launch
from mixq.experts.cache import SlotState
from mixq.experts.offload import ExpertOffload
from mixq.experts.ram_tier import RamTier
from mixq.formats.weights import Weights
from mixq.kernels.dispatch import Kernels
from mixq.kernels.reference import DECODE_ROWS, Expert


class Experts(Protocol):
    """The experts of one layer."""

    def __call__(self, x: Tensor, topk_ids: Tensor, topk_weights: Tensor, residual: Tensor | None) -> Tensor:
        """Return sum over a of topk_weights[t, a] * expert[topk_ids[t, a]](x[t]).

        Args:
            x: float32 [T, D].
            topk_ids: int64 [T, A]; no expert twice in a row.
            topk_weights: float32 [T, A].
            residual: float32 [T, D], the hidden state that `x` was normed from: what the next layers' routers are
                asked about; None asks them nothing.
        """
        ...

    def predict_nothing(self) -> None:
        """Ask no other layer's router from now on."""
        ...


@dataclass(frozen=True, slots=True)
class Lookahead:
    """The routers of the following layers, asked on today's hidden state for the experts that they will choose.

    Attributes:
        routers: post-attention norm and gate of each following layer, where `kernels` compute.
        eps: of the norms.
        active: experts that a router names.
    """

    kernels: Kernels
    routers: Sequence[tuple[Tensor, Tensor]]
    eps: float
    active: int

    def predict(self, residual: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Yield how many layers ahead, and the experts [T, A] named on the hidden states [T, D]."""
        for ahead, (norm, gate) in enumerate(self.routers, 1):
            yield ahead, self.kernels.route(self.kernels.rms_norm(residual, norm, self.eps), gate, self.active)[1]


class CpuExperts:
    """Experts computed in place; w1 is the gate, w2 the down, w3 the up projection.

    Args:
        tier: reads what is not in memory; None where all is.
        lookahead: tells it what the next layers will want.
    """

    def __init__(
        self,
        folder: Weights,
        layer: int,
        kernels: Kernels,
        *,
        tier: RamTier | None = None,
        lookahead: Lookahead | None = None,
    ) -> None:
        self.layer = layer
        self.tier = tier
        self.lookahead = lookahead
        prefix = f"model.layers.{layer}.block_sparse_moe.experts"
        self.experts = [
            (
                folder.linear(f"{prefix}.{expert}.w1"),
                folder.linear(f"{prefix}.{expert}.w2"),
                folder.linear(f"{prefix}.{expert}.w3"),
            )
            for expert in range(folder.config.num_local_experts)
        ]
        self.kernels = kernels

    def __call__(self, x: Tensor, topk_ids: Tensor, topk_weights: Tensor, residual: Tensor | None) -> Tensor:
        """See `Experts`; rows of an accelerator go to the host and back."""
        if self.tier is not None:
            self._read_ahead(self.tier, topk_ids, residual)
        answer = self.kernels.experts(x.cpu(), self.experts, topk_ids.cpu(), topk_weights.cpu())
        return answer.to(x.device)

    def predict_nothing(self) -> None:
        """See `Experts`."""
        self.lookahead = None

    def _read_ahead(self, tier: RamTier, topk_ids: Tensor, residual: Tensor | None) -> None:
        tier.use(self.layer, distinct(topk_ids))
        if len(topk_ids) > DECODE_ROWS and self.layer + 1 < tier.layers:
            tier.expect(self.layer + 1, range(len(self.experts)))
        elif self.lookahead is not None and residual is not None:
            for ahead, ids in self.lookahead.predict(residual):
                tier.expect(self.layer + ahead, distinct(ids))
        tier.wait()


class LayerExperts:
    """Experts of one layer in slots of an accelerator and in host memory.

    Args:
        offload: what the layers share.
        layer: which one this is.
        lookahead: predicts the next layers' experts; None predicts nothing.
    """

    def __init__(self, offload: ExpertOffload, layer: int, lookahead: Lookahead | None) -> None:
        self.offload = offload
        self.layer = layer
        self.lookahead = lookahead

    def __call__(self, x: Tensor, topk_ids: Tensor, topk_weights: Tensor, residual: Tensor | None) -> Tensor:
        """See `Experts`."""
        table = self.offload.memory.table(self.layer)
        if table is not None and self.offload.trace is None:
            return self._resident(x, topk_ids, topk_weights, table)
        if x.shape[0] > DECODE_ROWS:
            return self._prefill(x, topk_ids, topk_weights)
        return self._decode(x, topk_ids, topk_weights, residual)

    def predict_nothing(self) -> None:
        """See `Experts`."""
        self.lookahead = None

    def _resident(self, x: Tensor, topk_ids: Tensor, topk_weights: Tensor, table: Tensor) -> Tensor:
        """All experts are in slots: nothing to decide, nothing to wait for."""
        off = self.offload
        if x.shape[0] > DECODE_ROWS:
            off.counters.prefill_resident += off.store.experts
        else:
            off.count_resident(self.layer, topk_ids.numel())
        return off.accelerator.kernels.experts(x, off.memory.views(self.layer), table[topk_ids], topk_weights)

    # Decode

    def _decode(self, x: Tensor, topk_ids: Tensor, topk_weights: Tensor, residual: Tensor | None) -> Tensor:
        off, layer = self.offload, self.layer
        desk = Desk(off, x, topk_ids, topk_weights)
        predicted = {}
        if self.lookahead is not None and residual is not None and not off.all_resident(layer + 1):
            predicted = {ahead: desk.bring(f"ahead {ahead}", ids) for ahead, ids in self.lookahead.predict(residual)}
        desk.wait()
        off.settle()
        needed = off.note_choice(layer, desk.ids)
        plan = off.scheduler.plan_layer(off.cache, layer, needed, len(x), off.uploader)
        with off.holding(layer, plan.hits.values()) as held:
            answer = Answer(off, layer, desk)
            if plan.hits:
                held.hand_over(answer.launch(plan.hits))
            uploads = {expert: off.demand(layer, expert) for expert in plan.waits}
            for expert, place in plan.fetches.items():
                if place is not None:
                    uploads[expert] = off.upload(layer, expert, place, demanded=True)
            staged = StagedExperts(off, layer, [expert for expert, place in plan.fetches.items() if place is None])
            for expert, slot in plan.admissions.items():
                off.upload(layer, expert, slot, demanded=False)
            off.read_in(layer, plan.cpu)
            answer.compute_here(plan.cpu)
            for expert, upload in uploads.items():
                slot = off.arrived(upload)
                off.cache.acquire(layer, slot)
                with off.holding(layer, [slot]) as held:
                    held.hand_over(answer.launch({expert: slot}))
            staged.compute(answer)
            self._prefetch(predicted)
        off.count_decode(layer, plan)
        return answer.total()

    def _prefetch(self, predicted: Mapping[int, Tensor]) -> None:
        off = self.offload
        for ahead, ids in predicted.items():
            layer, experts = self.layer + ahead, distinct(ids)
            off.predicted(layer, ahead, experts)
            for expert, slot in off.scheduler.plan_prefetch(off.cache, layer, experts, off.uploader).items():
                off.upload(layer, expert, slot, demanded=False)

    # Prefill

    def _prefill(self, x: Tensor, topk_ids: Tensor, topk_weights: Tensor) -> Tensor:
        off, layer = self.offload, self.layer
        desk = Desk(off, x, topk_ids, topk_weights)
        desk.wait()
        off.settle()
        tokens = desk.ids.flatten().bincount(minlength=off.store.experts).tolist()  # [E] tokens of each expert
        resident, streamed, here = self._place(tokens)
        for slot in resident.values():
            off.cache.acquire(layer, slot)
        with off.holding(layer, resident.values()) as held:
            answer = Answer(off, layer, desk)
            if resident:
                held.hand_over(answer.launch(resident))
            uploads = {}
            for expert in streamed:
                if off.cache.state(layer, expert) is not None:
                    uploads[expert] = off.demand(layer, expert)
                elif off.cache.has_free_slot(layer) and (place := off.cache.begin_load(layer, expert)) is not None:
                    uploads[expert] = off.upload(layer, expert, place, demanded=True)  # an empty slot: it stays
            staged = StagedExperts(off, layer, [expert for expert in streamed if expert not in uploads])
            off.read_in(layer, here)
            answer.compute_here(here)
            for expert, upload in uploads.items():
                slot = off.arrived(upload)
                off.cache.acquire(layer, slot)
                with off.holding(layer, [slot]) as held:
                    held.hand_over(answer.launch({expert: slot}))
            staged.compute(answer)
        if off.streams(topk_ids.numel() / off.store.experts):
            off.stage_ahead(layer + 1)
        off.counters.prefill_resident += len(resident)
        off.counters.prefill_streamed += len(streamed)
        off.counters.prefill_on_cpu += len(here)
        return answer.total()

    def _place(self, tokens: Sequence[int]) -> tuple[dict[int, int], list[int], list[int]]:
        """Return what is in a slot (expert: slot), what is streamed to the accelerator, and what is computed here."""
        off = self.offload
        resident, streamed, here = {}, [], []
        for expert in sorted(range(len(tokens)), key=lambda e: -tokens[e]):
            if not tokens[expert]:
                continue
            place = off.cache.state(self.layer, expert)
            if place is not None and place[1] is SlotState.READY:
                resident[expert] = place[0]
            elif off.streams(tokens[expert]):
                streamed.append(expert)
            else:
                here.append(expert)
        streamed.sort(key=lambda expert: off.staging.find(self.layer, expert) is None)  # those on their way first
        return resident, streamed, here


class Desk:
    """A layer's input on both sides: on the accelerator, and in host memory once `wait` has returned."""

    def __init__(self, off: ExpertOffload, x: Tensor, topk_ids: Tensor, topk_weights: Tensor) -> None:
        self._off = off
        self.on_device = (x, topk_weights)
        self.ids = self.bring("ids", topk_ids)  # [T, A]
        self.weights = self.bring("weights", topk_weights)
        self.x = self.bring("x", x)  # [T, D]

    def bring(self, name: str, source: Tensor) -> Tensor:
        """Return the host's copy of a tensor, to be read after `wait`."""
        target = self._off.host_rows(name, source)
        self._off.accelerator.to_host(source, target)
        return target

    def wait(self) -> None:
        """Return once every copy has arrived."""
        self._off.accelerator.hand_over().wait()


class Answer:
    """The weighted sum of a layer's experts, from whoever computes them.

    Each part is summed by the kernels over the experts that it computed, a row of zeros where there was none. With up
    to two experts a token any order of the parts has the bits of one sum; with more, each choice is summed by itself
    and the choices in the router's order.
    """

    def __init__(self, off: ExpertOffload, layer: int, desk: Desk) -> None:
        A = desk.ids.shape[1]
        self._off, self._layer, self._desk = off, layer, desk
        self._choices = [slice(0, A)] if A <= 2 else [slice(a, a + 1) for a in range(A)]
        self._parts: list[Launch | Tensor] = []

    def launch(self, places: Mapping[int, int]) -> Launch:
        """Compute experts on the accelerator, in the background; `places` says where in the layer's views they are."""
        ids = self._off.accelerator.to_device(self._ids(places))  # [T, A]
        views = self._off.memory.views(self._layer)
        x, weights = self._desk.on_device
        launch = self._off.accelerator.launch(lambda kernels: self._sums(kernels, views, x, ids, weights))
        self._parts.append(launch)
        return launch

    def compute_here(self, experts: Sequence[int]) -> None:
        """Compute experts on the CPU, now."""
        if not experts:
            return
        off, desk = self._off, self._desk
        begun = time.perf_counter()
        ids = self._ids({expert: expert for expert in experts})
        part = self._sums(off.host_kernels, off.store.layer(self._layer), desk.x, ids, desk.weights)
        self._parts.append(off.accelerator.to_device(part))
        off.note_cpu(len(experts), len(desk.x), begun, time.perf_counter())

    def total(self) -> Tensor:
        """Return the sum [T, D]."""
        parts = [part if isinstance(part, Tensor) else part.result() for part in self._parts]  # each [C, T, D]
        together = parts[0]
        for part in parts[1:]:
            together = together + part
        total = together[0]
        for choice in together[1:]:
            total = total + choice
        return total

    def _ids(self, places: Mapping[int, int]) -> Tensor:
        """Return int64 [T, A]: where each chosen expert is, -1 for those that somebody else computes."""
        table = [places.get(expert, -1) for expert in range(self._off.store.experts)]
        return torch.tensor(table)[self._desk.ids]

    def _sums(self, kernels: Kernels, views: Sequence[Expert], x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        """Return [C, T, D], the sum of each group of choices."""
        if len(self._choices) == 1:
            return kernels.experts(x, views, ids, weights)[None]
        # The kernels see every row of an expert each time: how they multiply depends on how many there are.
        alone = [torch.zeros_like(weights) for _ in self._choices]
        for choice, kept in zip(self._choices, alone, strict=True):
            kept[:, choice] = weights[:, choice]
        return torch.stack([kernels.experts(x, views, ids, kept) for kept in alone])


class StagedExperts:
    """Experts that pass through the staging buffers: the next is copied while one is computed."""

    def __init__(self, off: ExpertOffload, layer: int, experts: Sequence[int]) -> None:
        self._off, self._layer, self._experts = off, layer, experts
        off.staging.release_claims()
        self._buffers = [off.staging.claim(layer, expert) for expert in experts[: len(off.staging)]]

    def compute(self, answer: Answer) -> None:
        """Compute them one after the other."""
        off = self._off
        for i, expert in enumerate(self._experts):
            buffer = self._buffers[i]
            off.wait_for(off.staging.upload(buffer))
            launch = answer.launch({expert: off.memory.staging_index(buffer)})
            off.staging.used(buffer, launch)
            off.in_use_until(launch, self._layer, ())
            if i + len(off.staging) < len(self._experts):
                self._buffers.append(off.staging.claim(self._layer, self._experts[i + len(off.staging)]))


def distinct(ids: Tensor) -> list[int]:
    """Return the experts of [T, A] in the order in which they appear first."""
    return list(dict.fromkeys(ids.flatten().tolist()))
