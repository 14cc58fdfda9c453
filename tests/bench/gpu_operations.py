"""Every operation of the Triton kernels against the reference, on a GPU; several processes share the cases.

Contract: a case gives rows for the report: what was compared, how far it is off, what is allowed; or whether bits agree
that must: with and without inline assembly, of a row alone and among others, of an expert in another slot. Without a
GPU the cases run in Triton's interpreter, on small sizes and without inline assembly.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from mixq.formats.packed import PackedLinear
from mixq.kernels import reference
from mixq.kernels.kv_layer import KVLayer
from mixq.kernels.reference import Expert, Weight
from mixq.kernels.triton.kernels import TritonKernels
from tests.bench.gpu_section import Session
from tests.kernels.random_weights import KINDS, distance, random_weight, relative

CLOSE = 2e-6
"""Of a product with few rows: exact integers, sums in float32."""
CLOSE_BF16 = 2e-3
"""Of many rows and of attention over a prompt: factors in bfloat16."""
CLOSE_MANY = 1e-4
"""Of experts, whose inner activations are rounded to int8 after a sum: one between two codes may go either way."""

LARGE = ("nl4:32", "w4:32:bf16", "w8:128:bf16", "nl4:16", "bf16")
Rows = Iterator[dict[str, Any]]


def run(session: Session) -> None:
    """Run this process's cases."""
    torch.set_num_threads(2)
    checks = Checks(session)
    cases = list(checks.cases())
    session.found["cases"] = []
    for name, case in cases[session.part :: session.parts]:
        if session.over():
            session.found["cases"].append({"what": name, "left_out": True})
            continue
        with session.trying(name), torch.inference_mode():
            for row in case():
                session.found["cases"].append(row)
                if not row["right"]:
                    session.found["errors"].append(f"{row}")
    session.save()


def on(device: torch.device, weight: Weight) -> Weight:
    """Return a copy of a weight on a device, table and all."""
    if isinstance(weight, Tensor):
        return weight.to(device)
    tensors = {name: tensor.to(device) for name, tensor in weight.tensors.items()}
    return dataclasses.replace(weight, tensors=tensors, table=None if weight.table is None else weight.table.to(device))


def large_weight(kind: str, N: int, K: int, device: torch.device, *, distinct: int = 64) -> Weight:
    """Return a weight [N, K] whose rows repeat those of a small one: random codes are slow to make."""
    small = on(device, random_weight(kind, distinct, K, seed=N, size=K**-0.5))

    def repeated(tensor: Tensor) -> Tensor:
        if len(tensor) != distinct:
            return tensor
        times = -(-N // distinct)
        return tensor.repeat(times, *[1] * (tensor.ndim - 1))[:N].contiguous()

    if isinstance(small, Tensor):
        return repeated(small)
    tensors = {name: repeated(tensor) for name, tensor in small.tensors.items()}
    if "weight_shape" in tensors:
        tensors["weight_shape"] = torch.tensor([N, K], device=device)
    return PackedLinear(small.scheme, (N, K), tensors, small.table)


class Checks:
    """The cases, with both variants of the kernels."""

    def __init__(self, session: Session) -> None:
        self.quick = session.quick
        self.device = torch.device("cuda" if session.cuda else "cpu")
        self.plain = TritonKernels(self.device)
        self.variants = {"plain": self.plain}
        if session.cuda:
            self.variants["asm"] = TritonKernels(self.device, inline_asm=True)

    def cases(self) -> Iterator[tuple[str, Callable[[], Rows]]]:
        """Yield what to check, the most important first."""
        D, F = (128, 192) if self.quick else (4096, 14336)
        few = (1,) if self.quick else (1, 2, 5, 8)
        for kind in LARGE[:1] if self.quick else LARGE:
            for N, K in ((F, D), (D, F))[: 1 if self.quick else 2]:
                yield f"linear {kind} [{N}, {K}]", functools.partial(self.linear, kind, N, K, few)
        for kind in ("nl4:32",) if self.quick else ("nl4:32", "w4:32:bf16", "w8:128:bf16"):
            for T in (1,) if self.quick else (1, 2, 8):
                yield f"experts {kind}, {T} tokens", functools.partial(self.experts, kind, D, F, T)
        yield "attention, bfloat16", functools.partial(self.attention, torch.bfloat16)
        if not self.quick:
            yield "attention, int8", functools.partial(self.attention, torch.int8)
        yield "router, norm, head", functools.partial(self.small, D)
        yield "three products at once", functools.partial(self.three, D)
        for kind in ("w4:64:f16",) if self.quick else KINDS:
            K = {"bf16": 1000, "nl4:16": 1024 + 48}.get(kind, 1024 + 128)
            yield f"odd sizes {kind}", functools.partial(self.linear, kind, 37, K, (1,) if self.quick else (1, 3))

    def linear(self, kind: str, N: int, K: int, tokens: Sequence[int]) -> Rows:
        """Few rows by the format's arithmetic, many by cuBLAS."""
        weight = large_weight(kind, N, K, torch.device("cpu"), distinct=min(N, 64))
        there = on(self.device, weight)
        x = torch.randn(max(tokens), K, generator=torch.Generator().manual_seed(N))
        x[0, 32:64] = 0
        checked = min(N, 64)  # rows repeat
        first = _first_rows(weight, checked)
        expected = reference.linear(x, first)
        what = f"{kind} [{N}, {K}]"
        for T in tokens:
            answers = {name: k.linear(x[:T].to(self.device), there).cpu() for name, k in self.variants.items()}
            yield row(what, T, distance(answers["plain"][:, :checked], expected[:T], x[:T], first), CLOSE)
            again = [answers["plain"][:, i : i + checked] for i in range(0, N - checked + 1, checked)]
            yield bits(f"{what}, blocks of equal rows", T, all(torch.equal(again[0], other) for other in again))
            if "asm" in answers:
                yield bits(f"{what}, inline assembly", T, torch.equal(answers["plain"], answers["asm"]))
            if T > 1:
                alone = self.plain.linear(x[T - 1 : T].to(self.device), there).cpu()
                yield bits(f"{what}, a row alone", T, torch.equal(alone[0], answers["plain"][T - 1]))
        many = torch.randn(reference.DECODE_ROWS + 61, K, generator=torch.Generator().manual_seed(K))
        answer = self.plain.linear(many.to(self.device), there).cpu()[:, :checked]
        yield row(what, len(many), relative(answer, reference.linear(many, first)), CLOSE_BF16)

    def experts(self, kind: str, D: int, F: int, T: int) -> Rows:
        """A layer's experts, in their own slots and in others."""
        E, A = 4, 2
        host = [self._expert(kind, D, F, seed) for seed in range(E)]
        there: list[Expert] = [tuple(on(self.device, w) for w in expert) for expert in host]  # type: ignore[misc]
        g = torch.Generator().manual_seed(T)
        x = torch.randn(T, D, generator=g)
        ids = torch.stack([torch.randperm(E, generator=g)[:A] for _ in range(T)])
        ids[0, 0] = -1  # somebody else's
        weights = torch.rand(T, A, generator=g)
        expected = reference.experts(x, host, ids, weights, reference.linear)
        inputs = [tensor.to(self.device) for tensor in (x, ids, weights)]
        answers = {name: k.experts(inputs[0], there, inputs[1], inputs[2]).cpu() for name, k in self.variants.items()}
        yield row(f"experts {kind}", T, relative(answers["plain"], expected), CLOSE_MANY)
        if "asm" in answers:
            yield bits(f"experts {kind}, inline assembly", T, torch.equal(answers["plain"], answers["asm"]))
        order = [2, 0, 3, 1]
        moved: list[Expert] = [there[order.index(slot)] for slot in range(E)]
        places = torch.tensor([*order, -1])[ids]
        elsewhere = self.plain.experts(inputs[0], moved, places.to(self.device), inputs[2]).cpu()
        yield bits(f"experts {kind}, other slots", T, torch.equal(elsewhere, answers["plain"]))
        for t in range(1, T):
            alone = self.plain.experts(*[inputs[0][t : t + 1], there, inputs[1][t : t + 1], inputs[2][t : t + 1]])
            if not torch.equal(alone.cpu()[0], answers["plain"][t]):
                yield bits(f"experts {kind}, row {t} alone", T, False)
                return
        if T > 1:
            yield bits(f"experts {kind}, rows alone", T, True)
        if T == 2:
            many = torch.randn(24, D, generator=g)
            ids = torch.stack([torch.randperm(E, generator=g)[:A] for _ in range(24)])
            weights = torch.rand(24, A, generator=g)
            answer = self.plain.experts(many.to(self.device), there, ids.to(self.device), weights.to(self.device))
            expected = reference.experts(many, host, ids, weights, reference.linear)
            yield row(f"experts {kind}", 24, relative(answer.cpu(), expected), 2e-2)

    def attention(self, dtype: torch.dtype) -> Rows:
        """Rotary embedding, KV write, decode and prefill, with and without a window."""
        H, KV, C, L = (2, 1, 32, 40) if self.quick else (32, 8, 128, 4096)
        g = torch.Generator().manual_seed(1)
        here = _kv(KV, L, C, dtype)
        keys, values = torch.randn(L, KV, C, generator=g), torch.randn(L, KV, C, generator=g)
        here.write(keys[: L - 8], values[: L - 8], 0)
        there = KVLayer(*[None if t is None else t.to(self.device) for t in _tensors(here)])  # type: ignore[arg-type]
        name = str(dtype).removeprefix("torch.")
        for T in (1,) if self.quick else (1, 8):
            position = L - 8
            q, k, v = (torch.randn(T, heads, C, generator=g) for heads in (H, KV, KV))
            angle = torch.rand(T, C // 2, generator=g) * 6
            sides = []
            for kernels, kv, device in ((reference, here, torch.device("cpu")), (self.plain, there, self.device)):
                moved = [t.to(device, copy=True) for t in (q, k, v, angle.cos(), angle.sin())]
                rotated = kernels.rotary_append(*moved, kv, position)  # type: ignore[attr-defined]
                rows = [kernels.attention_rows(rotated, kv, position, w) for w in (None, L // 3)]  # type: ignore[attr-defined]
                chunk = kernels.attention_prefill(rotated, kv, position, None)  # type: ignore[attr-defined]
                written = kv.read(position, position + T)
                sides.append([t.float().cpu() for t in (rotated, *written, *rows, chunk)])
            parts = ("rotary", "keys written", "values written", "decode", "decode in a window", "a chunk")
            for part, expected, answer in zip(parts, *sides, strict=True):
                close = {"a chunk": 2e-2, "keys written": 1e-3, "values written": 1e-3}.get(part, 2e-5)
                yield row(f"attention {name}, {part}", T, relative(answer, expected), close)

    def small(self, D: int) -> Rows:
        """Router, norms and the choice of experts."""
        g = torch.Generator().manual_seed(3)
        for T in (1,) if self.quick else (1, 8, 40):
            x, gate = torch.randn(T, D, generator=g), (torch.randn(8, D, generator=g) * D**-0.5).bfloat16()
            weight = (1 + torch.randn(D, generator=g) * 0.1).bfloat16()
            moved = [tensor.to(self.device) for tensor in (x, gate, weight)]
            norm = self.plain.rms_norm(moved[0], moved[2], 1e-5).cpu()
            yield row("RMSNorm", T, relative(norm, reference.rms_norm(x, weight, 1e-5)), CLOSE)
            logits = reference.router_logits(x, gate)
            yield row("router", T, relative(self.plain.router_logits(moved[0], moved[1]).cpu(), logits), 1e-5)
            chosen, ids = (t.cpu() for t in self.plain.route(moved[0], moved[1], 2))
            expected, expected_ids = reference.route(logits, 2)
            yield bits("chosen experts", T, torch.equal(ids, expected_ids))
            yield row("their weights", T, relative(chosen, expected), 1e-5)

    def three(self, D: int) -> Rows:
        """q, k and v in three formats in one launch, after a norm that prepares them."""
        x = torch.randn(2, D, generator=torch.Generator().manual_seed(4))
        norm = torch.ones(D).bfloat16()
        kinds = (("nl4:16", 96), ("w8:128:bf16", 40), ("bf16", 17))
        weights = [random_weight(kind, N, D, seed=N) for kind, N in kinds]
        there = [on(self.device, weight) for weight in weights]
        normed = reference.rms_norm(x, norm, 1e-5)
        for name, kernels in self.variants.items():
            prepared = kernels.rms_norm(x.to(self.device), norm.to(self.device), 1e-5)
            for answer, weight in zip(kernels.linears(prepared, there), weights, strict=True):
                # A norm that is off by a rounding may move an activation to the next code.
                yield row(f"q, k, v ({name})", 2, relative(answer.cpu(), reference.linear(normed, weight)), CLOSE_MANY)

    def _expert(self, kind: str, D: int, F: int, seed: int) -> Expert:
        cpu, distinct = torch.device("cpu"), 64 + 16 * seed  # no two experts are alike
        w1, w3 = (large_weight(kind, F, D, cpu, distinct=distinct + more) for more in (0, 8))
        return w1, large_weight(kind, D, F, cpu, distinct=distinct), w3


def _first_rows(weight: Weight, count: int) -> Weight:
    if isinstance(weight, Tensor):
        return weight[:count]
    tensors = {name: tensor[:count] if name != "weight_shape" else tensor for name, tensor in weight.tensors.items()}
    if "weight_shape" in tensors:
        tensors["weight_shape"] = torch.tensor([count, weight.shape[1]])
    return PackedLinear(weight.scheme, (count, weight.shape[1]), tensors, weight.table)


def _kv(KV: int, L: int, C: int, dtype: torch.dtype) -> KVLayer:
    scales = [torch.zeros(KV, L) for _ in "kv"] if dtype == torch.int8 else []
    return KVLayer(*[torch.zeros(KV, L, C, dtype=dtype) for _ in "kv"], *scales)


def _tensors(kv: KVLayer) -> tuple[Tensor | None, ...]:
    return kv.keys, kv.values, kv.key_scale, kv.value_scale


def row(what: str, T: int, error: float, allowed: float) -> dict[str, Any]:
    return {"what": what, "tokens": T, "error": error, "allowed": allowed, "right": bool(error <= allowed)}


def bits(what: str, T: int, equal: bool) -> dict[str, Any]:
    return {"what": what, "tokens": T, "same_bits": equal, "right": equal}
