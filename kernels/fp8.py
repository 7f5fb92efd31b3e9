"""Rows of numbers in float8_e4m3fn (largest value 448), a float32 scale for each row."""

import functools
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.handmade import LONGEST, Handmade, row_blocks

try:
    import triton
    import triton.language as tl
except ImportError:  # torch for a CPU comes without it
    triton = None
else:
    from kernels.handmade import load_part, store_quantized

FP8 = torch.float8_e4m3fn
FP8_MAX = torch.finfo(FP8).max
FP8_CAPABILITY = (8, 9)
SMALLEST_AMAX = 1e-12  # a row of zeros must not divide by zero


class Quantized(NamedTuple):
    """values: (..., K) float8_e4m3fn; scale: (..., 1) float32, so that values * scale is what was quantized."""

    values: Tensor
    scale: Tensor


def quantize_rows(x: Tensor) -> Quantized:
    """x: (..., K) of any float dtype to float8 with one scale a row; the largest of each row becomes 448."""
    scale = x.float().abs().amax(dim=-1, keepdim=True).clamp_min(SMALLEST_AMAX) / FP8_MAX
    return Quantized((x.float() / scale).clamp(-FP8_MAX, FP8_MAX).to(FP8), scale)


def quantize(x: Tensor) -> Quantized:
    """The same, on a GPU in one pass over the memory; there a number may be the next one of float8."""
    return _QUANTIZE(x)


def quantize_gelu(x: Tensor) -> Quantized:
    """quantize() of GELU in its tanh form, which a GPU does not round between."""
    return _QUANTIZE_GELU(x)


@functools.cache  # asked before each kernel
def fp8_missing(device: torch.device) -> str | None:
    """Why `device` has no FP8 matrix units that torch can use, or None."""
    if device.type != "cuda":
        return f"{device} is not a CUDA device"
    if (found := torch.cuda.get_device_capability(device)) < FP8_CAPABILITY:
        return f"it needs compute capability 8.9 or later, this GPU has {found[0]}.{found[1]}"
    return None


def fits_fp8(x: Tensor) -> bool:
    """Whether a kernel can quantize rows like these on their GPU."""
    return x.shape[-1] <= LONGEST and fp8_missing(x.device) is None


def _launch(x: Tensor, gelu: bool) -> Quantized:
    x, width = x.contiguous(), x.shape[-1]
    values, scale = torch.empty_like(x, dtype=FP8), x.new_empty((*x.shape[:-1], 1), dtype=torch.float32)
    blocks = row_blocks(width)
    _quantize[(scale.numel(),)](x, values, scale, width, SMALLEST_AMAX, FP8_MAX, GELU=gelu, **blocks)
    return Quantized(values, scale)


_QUANTIZE = Handmade(lambda x: _launch(x, gelu=False), quantize_rows, fits_fp8)
_QUANTIZE_GELU = Handmade(
    lambda x: _launch(x, gelu=True), lambda x: quantize_rows(F.gelu(x, approximate="tanh")), fits_fp8
)


if triton is not None:

    @triton.jit
    def _quantize(
        x, values, scales, width, least, largest, GELU: tl.constexpr, FIRST: tl.constexpr, REST: tl.constexpr
    ):
        row = tl.program_id(0).to(tl.int64)
        at = row * width
        first, rest = load_part(x + at, 0, width, FIRST), load_part(x + at, FIRST, width, REST)
        if GELU:
            first, rest = _gelu(first), _gelu(rest)
        store_quantized(values + at, scales + row, width, first, rest, least, largest, FIRST, REST)

    @triton.jit
    def _gelu(x):
        """0.5 x (1 + tanh(u)) is x sigmoid(2 u)."""
        return x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
