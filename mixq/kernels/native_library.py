"""The native kernels: finding the library, asking the CPU, calling it through ctypes.

Contract: `NativeKernels` does what `mixq.kernels.reference` does, on the CPU, over the same bytes. Every pointer passed
on belongs to a tensor whose dtype, shape and contiguity were checked here, and is kept alive. Without a library
`library()` is None and `unavailable_reason()` says why: no compiler when mixq was installed, another version, or
MIXQ_CPU_ISA=reference. This module knows no layer, no model and no file.

Axes: T tokens, N out, K in, D hidden, F ffn, E experts, A active experts, H heads, KV kv heads, C head size.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Sequence
from ctypes import POINTER, c_char_p, c_float, c_int, c_int8, c_int32, c_int64, c_void_p
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from mixq.config import did_you_mean
from mixq.errors import DoesNotFitError, UsageError, printable
from mixq.kernels import reference
from mixq.kernels.kv_layer import KVLayer
from mixq.kernels.reference import Expert, Weight

ABI_VERSION = 2

ISA_NAMES = {
    "portable": 0,
    "avx2": 1,
    "avxvnni": 2,
    "avx512": 3,
    "avx512bf16": 4,
    "neon": 10,
}
"""Instruction sets by the name that MIXQ_CPU_ISA takes; the numbers are those of native/cpu.h."""

BUILD_LOG = Path(__file__).with_name("native_build.txt")
"""What the compiler said, if the build failed."""

_TILE_WEIGHTS = 1 << 22
"""Weights dequantized at once for torch's GEMM: 8 MiB, which stay in the last cache."""

_INT4_TABLE = range(-8, 8)
_SCALE_TYPES = {torch.int8: 0, torch.bfloat16: 1, torch.float16: 2, torch.float32: 3}
_BF16, _NIBBLES, _BYTES, _F32 = range(4)
_KV_KINDS = {torch.bfloat16: 0, torch.int8: 1, torch.float32: 2}
_MAX_HEAD_DIM = 256


class Matrix(ctypes.Structure):
    """MixqMatrix of native/matrix.h."""

    _fields_ = (
        ("kind", c_int32),
        ("group_size", c_int32),
        ("rows", c_int64),
        ("columns", c_int64),
        ("codes", c_void_p),
        ("scales", c_void_p),
        ("row_scale", c_void_p),
        ("scale_type", c_int32),
        ("table", c_int8 * 16),
    )


class KVCache(ctypes.Structure):
    """MixqKvCache of native/kv_cache.h."""

    _fields_ = (
        ("kind", c_int32),
        ("heads", c_int64),
        ("capacity", c_int64),
        ("head_dim", c_int64),
        ("keys", c_void_p),
        ("values", c_void_p),
        ("key_scale", c_void_p),
        ("value_scale", c_void_p),
    )


@dataclass(frozen=True, slots=True)
class _Found:
    library: ctypes.CDLL | None
    isa: int
    reason: str


def library() -> ctypes.CDLL | None:
    """Return the loaded library, or None; see `unavailable_reason`."""
    return _find(os.environ.get("MIXQ_CPU_ISA", "")).library


def isa() -> int:
    """Return the number of the instruction set in use: the CPU's best, or what MIXQ_CPU_ISA asks for."""
    return _find(os.environ.get("MIXQ_CPU_ISA", "")).isa


_chosen_isa = isa


def isa_name(number: int) -> str:
    """Return the name of an instruction set's number."""
    return next(name for name, value in ISA_NAMES.items() if value == number)


def unavailable_reason() -> str | None:
    """Return why there are no native kernels, or None if there are."""
    found = _find(os.environ.get("MIXQ_CPU_ISA", ""))
    return found.reason if found.library is None else None


def compiler() -> str:
    """Return the compiler that built the library."""
    found = library()
    return found.mixq_compiler().decode() if found is not None else "none"


def supported_isas() -> list[str]:
    """Return the instruction sets that this CPU can run, plainest first."""
    found = library()
    return [name for name, number in ISA_NAMES.items() if found is not None and found.mixq_supports(number)]


@functools.cache
def _find(asked: str) -> _Found:
    if asked and asked != "reference" and asked not in ISA_NAMES:
        allowed = (*ISA_NAMES, "reference")
        raise UsageError(
            f"MIXQ_CPU_ISA is {printable(repr(asked))}; it must be one of {', '.join(allowed)}."
            + did_you_mean(asked, allowed)
        )
    if asked == "reference":
        return _Found(None, 0, "MIXQ_CPU_ISA=reference asks for the torch kernels.")
    files = sorted(Path(__file__).parent.glob("_native*.so"))
    if not files:
        return _Found(None, 0, _why_not_built())
    try:
        loaded = ctypes.CDLL(str(files[-1]))
        version = loaded.mixq_abi_version()
        if version == ABI_VERSION:
            _declare(loaded)
    except (OSError, AttributeError) as error:
        return _Found(None, 0, f"The native library cannot be loaded: {printable(str(error))}")
    if version != ABI_VERSION:
        return _Found(
            None, 0, f"The native library has interface version {version}, not {ABI_VERSION}: install mixq again."
        )
    if not asked:
        return _Found(loaded, loaded.mixq_best_isa(), "")
    if not loaded.mixq_supports(ISA_NAMES[asked]):
        can = ", ".join(name for name, number in ISA_NAMES.items() if loaded.mixq_supports(number))
        raise UsageError(f"MIXQ_CPU_ISA is {asked}, which this CPU does not have.", hint=f"It has: {can}.")
    return _Found(loaded, ISA_NAMES[asked], "")


def _why_not_built() -> str:
    try:
        said = BUILD_LOG.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return "The native library was not built when mixq was installed."
    first_line = next(iter(said.splitlines()), "")
    return f"The native library could not be built when mixq was installed: {printable(first_line)}"


def _declare(loaded: ctypes.CDLL) -> None:
    """Give the functions of native/api.h their types."""
    pointers = POINTER(c_void_p)
    for name, result, arguments in (
        ("mixq_compiler", c_char_p, ()),
        ("mixq_open", c_void_p, (c_int, c_int)),
        ("mixq_close", None, (c_void_p,)),
        ("mixq_busy_ns", c_int64, (c_void_p,)),
        ("mixq_linear", c_int, (c_void_p, c_int, pointers, c_void_p, c_int64, pointers)),
        ("mixq_integer_rows", c_int64, (c_void_p,)),
        ("mixq_set_integer_rows", None, (c_void_p, c_int64)),
        ("mixq_dequantize", c_int, (c_void_p, c_void_p, c_int64, c_int64, c_void_p)),
        ("mixq_router", c_int, (c_void_p, c_void_p, c_void_p, c_int64, c_void_p)),
        (
            "mixq_experts",
            c_int,
            (c_void_p, c_void_p, c_int64, c_void_p, c_int64, c_int64, c_void_p, c_void_p, c_void_p),
        ),
        ("mixq_rms_norm", None, (c_void_p, c_void_p, c_void_p, c_float, c_int64, c_int64, c_void_p)),
        (
            "mixq_rotary_append",
            None,
            (c_void_p, POINTER(KVCache), *(c_void_p,) * 5, c_int64, c_int64, c_int64),
        ),
        (
            "mixq_attention",
            c_int,
            (c_void_p, POINTER(KVCache), c_void_p, c_int64, c_int64, c_int64, c_int64, c_void_p),
        ),
        ("mixq_read", c_int64, (c_void_p, c_void_p, c_int64, c_int)),
    ):
        function = getattr(loaded, name)
        function.restype, function.argtypes = result, arguments


def matrix_of(weight: Weight) -> Matrix | None:
    """Return the C description of a weight, or None if the native kernels do not take it (nf4, float16, float32).

    The weight's tensors must outlive it.
    """
    if isinstance(weight, Tensor):
        if weight.dtype != torch.bfloat16 or not weight.is_contiguous():
            return None
        return Matrix(_BF16, 0, *weight.shape, weight.data_ptr(), None, None, 0)
    scheme, tensors = weight.scheme, weight.tensors
    if scheme.name == "nf4" or not all(tensor.is_contiguous() for tensor in tensors.values()):
        return None
    scale = tensors["weight_scale"]
    if scheme.name == "nl4":
        assert weight.table is not None
        codes, table = tensors["weight_codes"], weight.table.tolist()
        row_scale: int | None = tensors["weight_row_scale"].data_ptr()
    else:
        codes, table, row_scale = tensors["weight_packed"], list(_INT4_TABLE), None
    kind = _BYTES if scheme.name == "w8" else _NIBBLES
    return Matrix(
        kind,
        scheme.group_size,
        *weight.shape,
        codes.data_ptr(),
        scale.data_ptr(),
        row_scale,
        _SCALE_TYPES[scale.dtype],
        (c_int8 * 16)(*table),
    )


def kv_cache_of(kv: KVLayer) -> KVCache | None:
    """Return the C description of a layer's cache, or None if the native kernels do not take it.

    The layer's tensors must outlive it.
    """
    KV, capacity, C = kv.keys.shape
    tensors = [kv.keys, kv.values, *(scale for scale in (kv.key_scale, kv.value_scale) if scale is not None)]
    if C % 8 or C > _MAX_HEAD_DIM or not all(tensor.is_contiguous() for tensor in tensors):
        return None
    return KVCache(_KV_KINDS[kv.keys.dtype], KV, capacity, C, *[tensor.data_ptr() for tensor in tensors])


@dataclass(slots=True)
class _Bound:
    """What a call needs for some weights: the C descriptions, kept beside the weights they point into."""

    weights: object
    matrices: ctypes.Array[Matrix] | None
    pointers: ctypes.Array[c_void_p] | None = None
    shapes: list[tuple[int, int]] = field(default_factory=list)


class NativeKernels:
    """The CPU's kernels, with threads and working memory of their own.

    Attributes:
        uses_torch_threads: many rows go through torch's bfloat16 GEMM, which uses AMX tiles where the CPU has them.

    Args:
        threads: how many share the work, the calling one included.
        isa: the instruction set; None takes `isa()`.

    Raises:
        DoesNotFitError: the system refused threads or memory.
        RuntimeError: there is no library; ask `library()` first.
    """

    exact = False

    def __init__(self, threads: int, *, isa: int | None = None) -> None:
        found = library()
        if found is None:
            raise RuntimeError(unavailable_reason())
        self._library = found
        self.isa = _chosen_isa() if isa is None else isa
        self.threads = threads
        self.name = isa_name(self.isa)
        self.device = torch.device("cpu")
        self.context = found.mixq_open(threads, self.isa)
        if not self.context:
            raise DoesNotFitError(
                f"The system refused {threads} threads for the CPU kernels.", hint="Give a smaller --threads."
            )
        self.uses_torch_threads = self.isa == found.mixq_best_isa() and bool(found.mixq_has_amx())
        self._tile: Tensor | None = None
        self._bound: dict[int, _Bound] = {}

    def __del__(self) -> None:
        if getattr(self, "context", None):
            self._library.mixq_close(self.context)

    @property
    def integer_rows(self) -> int:
        """Up to how many rows of activations go through the integer kernels; more are multiplied in bfloat16."""
        return int(self._library.mixq_integer_rows(self.context))

    @integer_rows.setter
    def integer_rows(self, rows: int) -> None:
        self._library.mixq_set_integer_rows(self.context, rows)

    def busy_ns(self) -> int:
        """Return the nanoseconds spent inside the library so far."""
        return int(self._library.mixq_busy_ns(self.context))

    def linear(self, x: Tensor, weight: Weight) -> Tensor:
        """See `reference.linear`."""
        bound = self._bind(weight, (weight,))
        if bound.matrices is None:
            return reference.linear(x, weight, integer_rows=self.integer_rows)
        if self.uses_torch_threads and x.shape[0] > self.integer_rows:
            return self._torch_linear(x, bound)
        return self._linears(x, bound)[0]

    def linears(self, x: Tensor, weights: Sequence[Weight]) -> list[Tensor]:
        """Return [x @ w.T for w in weights] in one call."""
        bound = self._bind(weights, weights)
        if bound.matrices is None or (self.uses_torch_threads and x.shape[0] > self.integer_rows):
            return [self.linear(x, weight) for weight in weights]
        return self._linears(x, bound)

    def router_logits(self, x: Tensor, weight: Tensor) -> Tensor:
        """See `reference.router_logits`."""
        bound = self._bind(weight, (weight,), plain=True)
        if bound.matrices is None:
            return reference.router_logits(x, weight)
        x = x.contiguous()
        out = torch.empty(x.shape[0], weight.shape[0])
        self._checked(self._library.mixq_router(self.context, bound.matrices, x.data_ptr(), x.shape[0], out.data_ptr()))
        return out

    def route(self, x: Tensor, weight: Tensor, A: int) -> tuple[Tensor, Tensor]:
        """See `reference.route`."""
        return reference.route(self.router_logits(x, weight), A)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """See `reference.rms_norm`."""
        if weight.dtype != torch.bfloat16:
            return reference.rms_norm(x, weight, eps)
        x = x.contiguous()
        out = torch.empty_like(x)
        self._library.mixq_rms_norm(
            self.context, x.data_ptr(), weight.data_ptr(), eps, x.shape[0], x.shape[1], out.data_ptr()
        )
        return out

    def experts(self, x: Tensor, experts: Sequence[Expert], topk_ids: Tensor, topk_weights: Tensor) -> Tensor:
        """See `reference.experts`."""
        bound = self._bind(experts, [weight for expert in experts for weight in expert])
        if bound.matrices is None or (self.uses_torch_threads and x.shape[0] > self.integer_rows):
            return reference.experts(x, experts, topk_ids, topk_weights, self.linear)
        x, topk_ids, topk_weights = x.contiguous(), topk_ids.contiguous(), topk_weights.contiguous()
        out = torch.empty_like(x)
        self._checked(
            self._library.mixq_experts(
                self.context,
                bound.matrices,
                len(experts),
                x.data_ptr(),
                *topk_ids.shape,
                topk_ids.data_ptr(),
                topk_weights.data_ptr(),
                out.data_ptr(),
            )
        )
        return out

    def rotary_append(
        self, q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, kv: KVLayer, position: int | Tensor
    ) -> Tensor:
        """See `reference.rotary_append`."""
        cos, sin = reference.angles(cos, sin, position, len(q))
        position = int(position)
        cache = kv_cache_of(kv)
        if cache is None:
            return reference.rotary_append(q, k, v, cos, sin, kv, position)
        q, k, v, cos, sin = (x.contiguous() for x in (q, k, v, cos, sin))
        self._library.mixq_rotary_append(
            self.context, cache, *[x.data_ptr() for x in (q, k, v, cos, sin)], *q.shape[:2], position
        )
        return q

    def attention_rows(self, q: Tensor, kv: KVLayer, position: int | Tensor, window: int | None) -> Tensor:
        """See `reference.attention_rows`."""
        position = int(position)
        cache = kv_cache_of(kv)
        if cache is None:
            return reference.attention_rows(q, kv, position, window)
        return self._attention(q, cache, position, window)

    def attention_prefill(self, q: Tensor, kv: KVLayer, position: int, window: int | None) -> Tensor:
        """See `reference.attention_prefill`; here a row has the same bits as in `attention_rows`."""
        cache = kv_cache_of(kv)
        if cache is None:
            return reference.attention_prefill(q, kv, position, window)
        return self._attention(q, cache, position, window)

    def _attention(self, q: Tensor, cache: KVCache, position: int, window: int | None) -> Tensor:
        q = q.contiguous()
        out = torch.empty_like(q)
        self._checked(
            self._library.mixq_attention(
                self.context, cache, q.data_ptr(), *q.shape[:2], position, window or 0, out.data_ptr()
            )
        )
        return out

    def _torch_linear(self, x: Tensor, bound: _Bound) -> Tensor:
        """Dequantize a tile of rows into a buffer that is used again, and let torch multiply."""
        (N, K), rows = bound.shapes[0], x.bfloat16()
        if self._tile is None or self._tile.shape[1] != K:
            self._tile = torch.empty(_TILE_WEIGHTS // K + 1, K, dtype=torch.bfloat16)
        out = torch.empty(x.shape[0], N)
        for begin in range(0, N, len(self._tile)):
            tile = self._tile[: min(len(self._tile), N - begin)]
            self._checked(
                self._library.mixq_dequantize(self.context, bound.matrices, begin, begin + len(tile), tile.data_ptr())
            )
            out[:, begin : begin + len(tile)] = rows @ tile.T
        return out

    def _linears(self, x: Tensor, bound: _Bound) -> list[Tensor]:
        x = x.contiguous()
        T = x.shape[0]
        out = [torch.empty(T, N) for N, _ in bound.shapes]
        places = (c_void_p * len(out))(*[tensor.data_ptr() for tensor in out])
        self._checked(self._library.mixq_linear(self.context, len(out), bound.pointers, x.data_ptr(), T, places))
        return out

    def _bind(self, key: object, weights: Sequence[Weight], *, plain: bool = False) -> _Bound:
        """Return the C descriptions of `weights`, made once for each `key` object, which is kept alive."""
        bound = self._bound.get(id(key))
        if bound is None:
            bound = self._bound[id(key)] = _describe(key, weights, plain=plain)
            if bound.matrices is None:  # torch multiplies these (nf4, float16): with as many threads
                torch.set_num_threads(self.threads)
        return bound

    def _checked(self, failed: int) -> None:
        if failed:
            raise DoesNotFitError("The CPU kernels found no working memory.", hint="Close other programs.")


def _describe(key: object, weights: Sequence[Weight], *, plain: bool) -> _Bound:
    matrices = [
        _plain_matrix(weight) if plain and isinstance(weight, Tensor) else matrix_of(weight) for weight in weights
    ]
    if any(matrix is None for matrix in matrices):
        return _Bound(key, None)
    array = (Matrix * len(matrices))(*matrices)  # type: ignore[misc]
    pointers = (c_void_p * len(matrices))(*[ctypes.addressof(matrix) for matrix in array])
    return _Bound(key, array, pointers, [(matrix.rows, matrix.columns) for matrix in array])


def _plain_matrix(weight: Tensor) -> Matrix | None:
    if weight.dtype == torch.float32 and weight.is_contiguous():
        return Matrix(_F32, 0, *weight.shape, weight.data_ptr(), None, None, 0)
    return matrix_of(weight)
