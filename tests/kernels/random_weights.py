"""Weights of every kind that the native kernels take, with random codes; and weights at the edge of mapped memory."""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import mmap
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from mixq.formats import int_groups, nl4
from mixq.formats.packed import PackedLinear
from mixq.formats.scheme import Scheme
from mixq.kernels import native_library
from mixq.kernels.native_kernels import NativeKernels
from mixq.kernels.reference import Weight

ISAS = native_library.supported_isas()

KINDS = (
    "bf16", "nl4:16", "nl4:32", "nl4:64", "nl4:32:lowest", "w4:32:bf16", "w4:64:bf16", "w4:128:bf16", "w4:32:f16",
    "w4:64:f16", "w4:128:f16", "w8:32:bf16", "w8:64:bf16", "w8:128:bf16", "w8:32:f16", "w8:64:f16", "w8:128:f16",
)  # fmt: skip
"""Scheme, group size and type of the scales; `lowest` is a table with -128, which has no negative in 8 bits."""

ONE_OF_EACH = ("bf16", "nl4:16", "nl4:32:lowest", "nl4:64", "w4:32:f16", "w4:128:bf16", "w8:128:f16")

PAGE = mmap.PAGESIZE


@functools.cache
def kernels_of(isa: str, threads: int = 1) -> NativeKernels:
    """Return mixq's own kernels: torch's GEMM, used for many rows where the CPU has AMX, has tests of its own."""
    kernels = NativeKernels(threads, isa=native_library.ISA_NAMES[isa])
    kernels._torch_rows = None
    return kernels


def generator(seed: int) -> torch.Generator:
    print(f"seed {seed}")
    return torch.Generator().manual_seed(seed)


def relative(a: Tensor, b: Tensor) -> float:
    """Return the relative L2 distance, whatever the size of the numbers; 0 where both are zero."""
    a, b = a.double(), b.double()
    return float((a - b).norm() / b.norm()) if bool((a != b).any()) else 0.0


def distance(out: Tensor, expected: Tensor, x: Tensor, weight: Weight) -> float:
    """Return the largest difference, relative to the size that a product of such terms has: the root of their squares.

    A product of few terms may cancel to less than the rounding of its terms, so its own size says nothing.
    """
    dense = (weight if isinstance(weight, Tensor) else weight.dequantize()).double()
    size = (x.double().square() @ dense.square().T).sqrt()
    return float(((out.double() - expected.double()).abs() / size).nan_to_num(0).max())


def group_of(kind: str) -> int:
    return 1 if kind == "bf16" else int(kind.split(":")[1])


def random_weight(kind: str, N: int, K: int, seed: int, *, size: float = 1.0) -> Weight:
    """Return a weight [N, K] of about unit variance times `size`; a few groups, and row 2, are zero."""
    g = torch.Generator().manual_seed(seed + 1000)  # not the numbers that a test takes for activations
    if kind == "bf16":
        dense = torch.randn(N, K, generator=g) * size
        dense[2:3] = 0
        return dense.bfloat16()
    name, group, detail = (*kind.split(":"), "")[:3]
    scheme = Scheme(name, int(group))
    groups = (N, K // scheme.group_size)
    zero = torch.rand(groups, generator=g) < 0.05
    zero[2:3] = True
    if name == "nl4":
        table = (-128, *nl4.DEFAULT_TABLE[1:]) if detail == "lowest" else nl4.DEFAULT_TABLE
        codes = torch.randint(0, 16, (N, K), generator=g, dtype=torch.uint8)
        scale = torch.randint(-127, 128, groups, generator=g, dtype=torch.int8).masked_fill(zero, 0)
        row_scale = (torch.rand(N, generator=g) + 0.5) * (2e-4 * size)
        return PackedLinear(scheme, (N, K), nl4.pack(codes, scale, row_scale), nl4.table_tensor(table))
    half = 2 ** (scheme.bits - 1)
    q = torch.randint(-half, half, (N, K), generator=g, dtype=torch.int8)
    scale = (torch.randn(groups, generator=g) * (1.7 * size / half)).masked_fill(zero, 0)
    dtype = torch.float16 if detail == "f16" else torch.bfloat16
    return PackedLinear(scheme, (N, K), int_groups.pack(q, scale.to(dtype), scheme.bits))


def map_tensors(weight: Weight, move: Callable[[Tensor], Tensor]) -> Weight:
    """Return the weight with each of its tensors replaced."""
    if isinstance(weight, Tensor):
        return move(weight)
    return dataclasses.replace(weight, tensors={name: move(tensor) for name, tensor in weight.tensors.items()})


def at_address(tensor: Tensor, address: int) -> Tensor:
    """Return a copy of the tensor that lies at `address`, which may be odd."""
    room = (ctypes.c_uint8 * tensor.nbytes).from_address(address)
    ctypes.memmove(address, tensor.contiguous().data_ptr(), tensor.nbytes)
    return torch.frombuffer(room, dtype=tensor.dtype).view(tensor.shape)


class GuardedMemory:
    """Memory between pages that cannot be touched: reading a byte too far ends the process.

    Contract: what was placed here must not be used after `close`.
    """

    def __init__(self) -> None:
        self._c = ctypes.CDLL(None, use_errno=True)
        self._c.mmap.restype = ctypes.c_void_p
        self._c.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *(ctypes.c_int,) * 3, ctypes.c_long)
        self._c.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
        self._c.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        self._mapped: list[tuple[int, int]] = []

    def _map(self, nbytes: int) -> tuple[int, int]:
        """Return the first and the last address, plus one, of whole pages for nbytes."""
        pages = -(-nbytes // PAGE)
        size = (pages + 2) * PAGE
        address = self._c.mmap(None, size, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
        self._mapped.append((address, size))
        failed = self._c.mprotect(address + PAGE, pages * PAGE, mmap.PROT_READ | mmap.PROT_WRITE)
        assert not failed, ctypes.get_errno()
        return address + PAGE, address + PAGE + pages * PAGE

    def at_end(self, tensor: Tensor) -> Tensor:
        """Return a copy that ends where the pages end."""
        return at_address(tensor, self._map(tensor.nbytes)[1] - tensor.nbytes)

    def at_begin(self, tensor: Tensor) -> Tensor:
        """Return a copy that begins where the pages begin."""
        return at_address(tensor, self._map(tensor.nbytes)[0])

    def at_odd_place(self, tensor: Tensor) -> Tensor:
        """Return a copy at an odd address."""
        return at_address(tensor, self._map(tensor.nbytes + 3)[0] + 3)

    def close(self) -> None:
        for address, size in self._mapped:
            self._c.munmap(address, size)


@contextmanager
def guarded_memory() -> Iterator[GuardedMemory]:
    memory = GuardedMemory()
    try:
        yield memory
    finally:
        memory.close()
