"""Runs the chosen experts of a layer and sums their outputs, on the CPU or on CPU and accelerator together.

Contract: the router chooses the experts, the kernels compute products, and the scheduler chooses the device of each
expert. `CpuExperts` computes on the CPU, with the mapped weights. `LayerExperts` computes experts in slots on the
accelerator and, at the same time, the others on the CPU or after a copy, as planned.

Axes: T tokens, E experts, A active experts, D hidden.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from mixq.experts.cache import SlotState
from mixq.experts.expert_sum import ExpertSum, HostCopies
from mixq.experts.lookahead import Lookahead
from mixq.experts.offload import ExpertOffload
from mixq.experts.ram_tier import RamTier
from mixq.experts.scheduler import LayerPlan
from mixq.experts.store import expert_weights
from mixq.formats.weights import Tensors
from mixq.kernels.dispatch import Kernels
from mixq.kernels.reference import DECODE_ROWS

Experts = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""The experts of one layer: (x, topk_ids, topk_weights, residual) -> [T, D], the sum over a of
topk_weights[t, a] * expert[topk_ids[t, a]](x[t]).

x is float32 [T, D], topk_ids int64 [T, A] with no expert twice in a row, topk_weights float32 [T, A]. The next layers'
experts are predicted from residual, float32 [T, D], the hidden state that x was normed from; None predicts nothing.
"""


class CpuExperts:
    """Experts on the CPU; `tier` reads those that are not in memory; None if all are."""

    def __init__(self, folder: Tensors, layer: int, kernels: Kernels, *, tier: RamTier | None = None) -> None:
        self.layer = layer
        self.tier = tier
        self.experts = [expert_weights(folder, layer, expert) for expert in range(folder.config.num_local_experts)]
        self.kernels = kernels

    def __call__(self, x: Tensor, topk_ids: Tensor, topk_weights: Tensor, residual: Tensor | None) -> Tensor:
        """Compute as `Experts` says; rows of an accelerator go to the host and back."""
        if self.tier is not None:
            self.tier.use(self.layer, distinct(topk_ids))
            if len(topk_ids) > DECODE_ROWS and self.layer + 1 < self.tier.layers:
                self.tier.expect(self.layer + 1, range(len(self.experts)))
            self.tier.wait()
        output = self.kernels.experts(x.cpu(), self.experts, topk_ids.cpu(), topk_weights.cpu())
        return output.to(x.device)


class LayerExperts:
    """The experts of one layer, in slots of an accelerator and in host memory; `offload` is shared by all layers."""

    def __init__(self, offload: ExpertOffload, layer: int, lookahead: Lookahead | None) -> None:
        self.offload = offload
        self.layer = layer
        self.lookahead = lookahead

    def __call__(self, x: Tensor, topk_ids: Tensor, topk_weights: Tensor, residual: Tensor | None) -> Tensor:
        """Compute as `Experts` says."""
        off = self.offload
        table = off.memory.table(self.layer)
        if table is not None and not off.lockstep:  # all experts are in slots: nothing to decide, nothing to wait for
            if len(x) > DECODE_ROWS:
                off.telemetry.counters.prefill_resident += off.store.experts
            else:
                off.telemetry.count_resident(self.layer, topk_ids.numel())
            return off.accelerator.kernels.experts(x, off.memory.views(self.layer), table[topk_ids], topk_weights)
        copies = HostCopies(off, x, topk_ids, topk_weights)
        return self._prefill(copies) if len(x) > DECODE_ROWS else self._decode(copies, residual)

    def _decode(self, copies: HostCopies, residual: Tensor | None) -> Tensor:
        off, layer = self.offload, self.layer
        # Route
        predicted = {}
        if self.lookahead is not None and residual is not None and not off.all_resident(layer + 1):
            predicted = {ahead: copies.copy(f"ahead {ahead}", ids) for ahead, ids in self.lookahead.predict(residual)}
        copies.wait()
        off.settle()
        needed = distinct(copies.ids)
        off.telemetry.note_choice(layer, needed)
        # Plan
        plan = off.scheduler.plan_layer(off.cache, layer, needed, len(copies.x), off.uploader)
        with off.acquired(layer, plan.hits.values()) as slots:
            # Launch hits, compute misses
            total = ExpertSum(off, layer, copies)
            if plan.hits:
                total.launch(plan.hits, slots)
            self._compute_misses(plan, total)
            for ahead, ids in predicted.items():
                self._prefetch(ahead, distinct(ids))
        off.telemetry.count_decode(layer, plan)
        # Sum
        return total.result()

    def _prefetch(self, ahead: int, experts: list[int]) -> None:
        off, layer = self.offload, self.layer + ahead
        off.telemetry.note_prediction(layer, ahead, experts)
        for expert, slot in off.scheduler.plan_prefetch(off.cache, layer, experts, off.uploader).items():
            off.upload(layer, expert, slot, demanded=False)

    def _prefill(self, copies: HostCopies) -> Tensor:
        off, layer = self.offload, self.layer
        copies.wait()
        off.settle()
        plan = self._plan_prefill(copies.ids)
        with off.acquired(layer, plan.hits.values()) as slots:
            total = ExpertSum(off, layer, copies)
            if plan.hits:
                total.launch(plan.hits, slots)
            self._compute_misses(plan, total)
        if off.streams(copies.ids.numel() / off.store.experts):
            off.stage_ahead(layer + 1)
        off.telemetry.count_prefill(plan)
        return total.result()

    def _plan_prefill(self, ids: Tensor) -> LayerPlan:
        """Return the plan for the experts of ids [T, A]; as in decode, hits are acquired."""
        off, layer, cache = self.offload, self.layer, self.offload.cache
        tokens = ids.flatten().bincount(minlength=off.store.experts).tolist()  # [E] tokens of each expert
        hits: dict[int, int] = {}
        waits: dict[int, int] = {}
        fetches: dict[int, int | None] = {}
        on_cpu = []
        for expert in sorted(range(len(tokens)), key=lambda e: (off.staging.find(layer, e) is None, -tokens[e])):
            if not tokens[expert]:
                continue
            place = cache.state(layer, expert)
            if place is not None and place[1] is SlotState.READY:
                hits[expert] = place[0]
                cache.acquire(layer, place[0])
            elif not off.streams(tokens[expert]):
                on_cpu.append(expert)
            elif place is not None:
                waits[expert] = place[0]
            else:  # it stays in an empty slot; otherwise it goes through a staging buffer
                fetches[expert] = cache.begin_load(layer, expert) if cache.has_free_slot(layer) else None
        return LayerPlan(hits, waits, fetches, tuple(on_cpu), {})

    def _compute_misses(self, plan: LayerPlan, total: ExpertSum) -> None:
        """Start the plan's copies, compute its CPU experts, and launch copied experts as they arrive."""
        off, layer = self.offload, self.layer
        uploads = [off.demand(layer, expert) for expert in plan.waits]
        uploads += [off.upload(layer, e, slot, demanded=True) for e, slot in plan.fetches.items() if slot is not None]
        staged = [expert for expert, slot in plan.fetches.items() if slot is None]
        buffers = off.staging.claim_first(layer, staged)
        for expert, slot in plan.admissions.items():
            off.upload(layer, expert, slot, demanded=False)
        total.compute_on_cpu(plan.cpu)
        for upload in uploads:
            slot = off.arrived(upload)
            off.cache.acquire(layer, slot)
            with off.acquired(layer, [slot]) as slots:
                total.launch({upload.key[1]: slot}, slots)
        for number, expert in enumerate(staged):  # the next is copied while one is computed
            buffer = buffers[number]
            off.wait_for(off.staging.upload(buffer))
            off.staging.used(buffer, total.launch({expert: off.memory.staging_index(buffer)}, []))
            if number + len(off.staging) < len(staged):
                buffers.append(off.staging.claim(layer, staged[number + len(off.staging)]))


def distinct(ids: Tensor) -> list[int]:
    """Return the distinct experts of [T, A], in order of first occurrence."""
    return list(dict.fromkeys(ids.flatten().tolist()))
