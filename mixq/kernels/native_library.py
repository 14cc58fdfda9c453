"""The native library: loads it, chooses the instruction set, and declares its interface in ctypes.

Contract: `library()` returns the loaded library with the types of its functions declared, or None; then
`unavailable_reason()` gives the reason: no compiler when mixq was installed, another interface version, or
MIXQ_CPU_ISA=reference. `matrix_of` and `kv_cache_of` describe tensors to it, and check dtype, shape and contiguity.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Sequence
from ctypes import POINTER, c_char_p, c_float, c_int, c_int8, c_int32, c_int64, c_void_p
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mixq.errors import DoesNotFitError, UsageError, did_you_mean, printable
from mixq.kernels.kv_layer import KVLayer
from mixq.kernels.reference import Weight

ABI_VERSION = 4

ISA_NAMES = {
    "portable": 0,
    "avx2": 1,
    "avxvnni": 2,
    "avx512": 3,
    "amx": 4,
    "neon": 10,
}
"""Instruction sets by their names in MIXQ_CPU_ISA; the numbers are those of native/cpu.h."""

BUILD_LOG = Path(__file__).with_name("native_build.txt")
"""The compiler's messages, if the build failed."""

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
    """MixqKvCache of native/api.h."""

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


class Layer(ctypes.Structure):
    """MixqLayer of native/api.h."""

    _fields_ = (
        ("input_norm", c_void_p),
        ("post_norm", c_void_p),
        ("qkv", c_void_p),
        ("o", c_void_p),
        ("gate", c_void_p),
        ("experts", c_void_p),
    )


class Network(ctypes.Structure):
    """MixqNetwork of native/api.h."""

    _fields_ = (
        ("embedding", c_void_p),
        ("layers", c_void_p),
        ("count", c_int64),
        ("norm", c_void_p),
        ("head", c_void_p),
        ("cosine", c_void_p),
        ("sine", c_void_p),
        ("active", c_int64),
        ("window", c_int64),
        ("eps", c_float),
    )


class Rows(ctypes.Structure):
    """MixqRows of native/api.h."""

    _fields_ = (("caches", POINTER(KVCache)), ("position", c_int64), ("count", c_int64))


class Fetch(ctypes.Structure):
    """MixqFetch of native/api.h."""

    _fields_ = (("hint", c_int32), ("rows", c_int32), ("distance", c_int64), ("near", c_int64))


DEFAULT_FETCH = Fetch(3, 1, 8192, 1024)
"""Into the second-level cache and from there into the first; without a measurement (`mixq.kernels.fetch_plan`)."""


class SearchSource(ctypes.Structure):
    """MixqSource of native/search.h."""

    _fields_ = (
        ("weight", c_void_p),
        ("rows", c_int64),
        ("columns", c_int64),
        ("type", c_int32),
        ("group_size", c_int32),
        ("importance", c_void_p),
    )


class SearchLoss(ctypes.Structure):
    """MixqLoss of native/search.h."""

    _fields_ = (("errors", c_void_p), ("energies", c_void_p), ("group_errors", c_void_p), ("groups", c_void_p))


@dataclass(frozen=True, slots=True)
class _Found:
    library: ctypes.CDLL | None
    isa: int
    reason: str


def library() -> ctypes.CDLL | None:
    """Return the loaded library; None if there is none (see `unavailable_reason`)."""
    return _find(os.environ.get("MIXQ_CPU_ISA", "")).library


def isa() -> int:
    """Return the number of the instruction set in use: the CPU's best, or that of MIXQ_CPU_ISA."""
    return _find(os.environ.get("MIXQ_CPU_ISA", "")).isa


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
    """Return the instruction sets that this CPU can run, the simplest first."""
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
        return _Found(None, 0, "MIXQ_CPU_ISA=reference selects the torch kernels.")
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
    """Declare the types of the library's functions; a result of `_failed` raises DoesNotFitError unless it is 0."""
    pointers = POINTER(c_void_p)
    for name, result, arguments in (
        ("mixq_compiler", c_char_p, ()),
        ("mixq_open", c_void_p, (c_int, c_int)),
        ("mixq_close", None, (c_void_p,)),
        ("mixq_busy_ns", c_int64, (c_void_p,)),
        ("mixq_linear", _failed, (c_void_p, c_int, pointers, c_void_p, c_int64, pointers)),
        ("mixq_router", _failed, (c_void_p, c_void_p, c_void_p, c_int64, c_void_p)),
        ("mixq_choose", None, (c_void_p, c_void_p, c_int64, c_int64, c_int64, c_void_p, c_void_p)),
        (
            "mixq_step",
            _failed,
            (c_void_p, POINTER(Network), c_void_p, c_int64, POINTER(Rows), c_int, c_void_p, c_void_p),
        ),
        (
            "mixq_experts",
            _failed,
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
            _failed,
            (c_void_p, POINTER(KVCache), c_void_p, c_int64, c_int64, c_int64, c_int64, c_void_p),
        ),
        ("mixq_set_fetch", None, (c_void_p, POINTER(Fetch))),
        ("mixq_read", c_int64, (c_void_p, c_void_p, c_int64, c_int)),
        ("mixq_search_nl4", c_int, (c_int, POINTER(SearchSource), *(c_void_p,) * 4, POINTER(SearchLoss))),
        (
            "mixq_search_integers",
            c_int,
            (c_int, POINTER(SearchSource), c_int, c_int, c_void_p, c_void_p, POINTER(SearchLoss)),
        ),
    ):
        function = getattr(loaded, name)
        function.argtypes = arguments
        if result is _failed:
            function.errcheck = _failed  # the result is an int, which is ctypes' default
        else:
            function.restype = result


def _failed(code: int, _function: object, _arguments: object) -> None:
    if code:
        raise DoesNotFitError("Not enough memory for the CPU kernels.", hint="Close other programs.")


def matrix_of(weight: Weight, *, float32: bool = False) -> Matrix | None:
    """Return the C description of a weight, or None if the native kernels do not support it (nf4, float16).

    The weight's tensors must outlive it. `float32`: the operation supports float32 weights too.
    """
    if isinstance(weight, Tensor):
        kind = {torch.bfloat16: _BF16, torch.float32: _F32 if float32 else None}.get(weight.dtype)
        if kind is None or not weight.is_contiguous():
            return None
        return Matrix(kind, 0, *weight.shape, weight.data_ptr(), None, None, 0)
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
    """Return the C description of a layer's cache, or None if the native kernels do not support it.

    The layer's tensors must outlive it.
    """
    KV, capacity, C = kv.keys.shape
    tensors = [kv.keys, kv.values, *(scale for scale in (kv.key_scale, kv.value_scale) if scale is not None)]
    if C % 8 or C > _MAX_HEAD_DIM or not all(tensor.is_contiguous() for tensor in tensors):
        return None
    return KVCache(_KV_KINDS[kv.keys.dtype], KV, capacity, C, *[tensor.data_ptr() for tensor in tensors])


def rows_of(kv: Sequence[KVLayer]) -> Rows | None:
    """Return the C description of a sequence with the caches of its layers, or None if one of them is not supported.

    The layers' tensors must outlive it. The caller sets position and count.
    """
    caches = [cache for layer in kv if (cache := kv_cache_of(layer)) is not None]
    return Rows((KVCache * len(kv))(*caches), 0, 0) if len(caches) == len(kv) else None
