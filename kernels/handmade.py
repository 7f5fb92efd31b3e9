"""Whether kernels written in Triton run on a device, and the parts that several of them share.

A row of numbers lies in registers as two parts, FIRST and REST, because the sizes of Triton's blocks are powers of two:
1536 is 1024 and 512, 5120 is 4096 and 1024, and nothing is computed in vain.
"""

import functools
import warnings

import torch

try:
    import triton
    import triton.language as tl
except ImportError:  # torch for a CPU comes without it
    triton = None

LONGEST = 2**15
"""Of the rows that a kernel holds in registers."""


@functools.cache
def kernels_run(device: torch.device) -> bool:
    """Whether they run on `device`; tried once, and where a GPU cannot, a warning says why."""
    if triton is None or device.type != "cuda":
        return False
    try:
        _count[(1,)](torch.empty(1, device=device))
    except Exception as error:  # a compiler's, a driver's, a file system's: slower, but what asks has another way
        why = str(error).split("\n")[0] or type(error).__name__
        warnings.warn(f"kernels cannot be compiled, so parts run slower: {why}", RuntimeWarning, stacklevel=2)
        return False
    return True


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
    def _count(x):
        tl.store(x, 1.0)

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
        """A row as kernels.fp8.quantize_rows has it: its numbers and its scale."""
        top = tl.maximum(tl.max(tl.abs(first), axis=0), tl.max(tl.abs(rest), axis=0))
        top = tl.maximum(top, least)
        inverse = largest / top
        first = tl.clamp(first * inverse, -largest, largest, propagate_nan=tl.PropagateNan.ALL)
        rest = tl.clamp(rest * inverse, -largest, largest, propagate_nan=tl.PropagateNan.ALL)
        store_part(values, 0, width, first, FIRST)
        store_part(values, FIRST, width, rest, REST)
        tl.store(scale, top / largest)
