"""Kernels written in Triton: where they run, what runs in their place elsewhere, and the parts that several share.

A row of numbers lies in registers as two parts, FIRST and REST, because the sizes of Triton's blocks are powers of two:
1536 is 1024 and 512, 5120 is 4096 and 1024, and nothing is computed in vain.
"""

import functools
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from kernels.caches import keep_on_disk

try:
    import triton
    import triton.language as tl
except ImportError:  # torch for a CPU comes without it
    triton = None

LONGEST = 2**15
"""Of the rows that a kernel holds in registers."""


@functools.cache
def _settle() -> None:
    """Once, before the first kernel is compiled."""
    keep_on_disk()


class Handmade:
    """A kernel for tensors on a GPU, and another way for all others and wherever the kernel turns out not to run."""

    def __init__(self, kernel: Callable, otherwise: Callable, fits: Callable[[Tensor], bool] = lambda x: True):
        """Both take a tensor first, and `fits` says of it whether the kernel takes it."""
        self._kernel, self._otherwise, self._fits = kernel, otherwise, fits
        self._runs = triton is not None

    def __call__(self, x: Tensor, *inputs):
        if not (self._runs and x.is_cuda and self._fits(x)):
            return self._otherwise(x, *inputs)
        try:
            _settle()
            return self._kernel(x, *inputs)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a compiler's, a driver's, a file system's: slower, but there is another way
            why = str(error).split("\n")[0] or type(error).__name__
            warnings.warn(f"a kernel cannot be used, and a part runs slower: {why}", RuntimeWarning, stacklevel=2)
            self._runs = False
            return self._otherwise(x, *inputs)


def row_blocks(width: int) -> dict[str, int]:
    """FIRST, REST and num_warps for rows of `width` numbers, at least 4."""
    first = triton.next_power_of_2(width) // 2
    return {
        "FIRST": first,
        "REST": triton.next_power_of_2(width - first),
        "num_warps": min(16, max(4, first // 512)),
    }


if triton is not None:

    @triton.jit
    def load_part(row, start, width, BLOCK: tl.constexpr):
        """In float32; beyond the row's width zeros."""
        column = start + tl.arange(0, BLOCK)
        return tl.load(row + column, mask=column < width, other=0.0).to(tl.float32)

    @triton.jit
    def store_part(row, start, width, numbers, BLOCK: tl.constexpr):
        column = start + tl.arange(0, BLOCK)
        tl.store(row + column, numbers.to(row.dtype.element_ty), mask=column < width)

    @triton.jit
    def store_quantized(values, scale, width, first, rest, least, largest, FIRST: tl.constexpr, REST: tl.constexpr):
        """A row's numbers and its scale, as kernels.fp8.quantize_rows; what is no number stays that one alone."""
        top = tl.maximum(tl.max(tl.abs(first), axis=0), tl.max(tl.abs(rest), axis=0))
        top = tl.maximum(top, least)
        inverse = largest / top
        first = tl.clamp(first * inverse, -largest, largest, propagate_nan=tl.PropagateNan.ALL)
        rest = tl.clamp(rest * inverse, -largest, largest, propagate_nan=tl.PropagateNan.ALL)
        store_part(values, 0, width, first, FIRST)
        store_part(values, FIRST, width, rest, REST)
        tl.store(scale, top / largest)
