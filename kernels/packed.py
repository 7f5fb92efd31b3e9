"""Keys and values in a byte a number: float8_e4m3fn with a scale for each head of a token.

A scale is a power of two, so scaling rounds nothing: what is unpacked is exact in bfloat16, and packed again it is the
same numbers. The largest of each head's numbers becomes more than 224 and at most 448.
"""

import torch
from torch import Tensor

from kernels.fp8 import FP8, FP8_MAX, SMALLEST_AMAX, Quantized, fp8_missing
from kernels.handmade import Handmade

try:
    import triton
    import triton.language as tl
except ImportError:  # torch for a CPU comes without it
    triton = None

ROWS = 32
MANTISSA = 23  # bits of a float32's


def pack(x: Tensor) -> Quantized:
    """x: (..., D) to values (..., D) float8_e4m3fn and scales (..., 1) bfloat16."""
    return _PACK(x)


def unpack(packed: Quantized, dtype: torch.dtype) -> Tensor:
    """(..., D) of what was packed."""
    return _UNPACK(packed.values, packed.scale, dtype)


def _pack_plainly(x: Tensor) -> Quantized:
    bits = (x.float().abs().amax(-1, keepdim=True).clamp_min(SMALLEST_AMAX) * (1 / FP8_MAX)).view(torch.int32)
    scale = ((bits + (2**MANTISSA - 1) >> MANTISSA) << MANTISSA).view(torch.float32)
    return Quantized((x.float() / scale).to(FP8), scale.bfloat16())


def _unpack_plainly(values: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    return (values.float() * scale.float()).to(dtype)


def _fits(x: Tensor) -> bool:
    return fp8_missing(x.device) is None and x.shape[-1].bit_count() == 1


def _launch_pack(x: Tensor) -> Quantized:
    x = x.contiguous()
    values, scale = torch.empty_like(x, dtype=FP8), x.new_empty((*x.shape[:-1], 1), dtype=torch.bfloat16)
    _pack[(triton.cdiv(scale.numel(), ROWS),)](
        x, values, scale, scale.numel(), SMALLEST_AMAX, 1 / FP8_MAX, ROWS, x.shape[-1]
    )
    return Quantized(values, scale)


def _launch_unpack(values: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    values, scale = values.contiguous(), scale.contiguous()
    out = torch.empty_like(values, dtype=dtype)
    _unpack[(triton.cdiv(scale.numel(), ROWS),)](values, scale, out, scale.numel(), ROWS, values.shape[-1])
    return out


_PACK, _UNPACK = Handmade(_launch_pack, _pack_plainly, _fits), Handmade(_launch_unpack, _unpack_plainly, _fits)


if triton is not None:

    @triton.jit
    def _pack(x, values, scales, count, least, inverse, ROWS: tl.constexpr, WIDTH: tl.constexpr):
        row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
        places = row[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
        inside = (row < count)[:, None]
        numbers = tl.load(x + places, mask=inside, other=0.0).to(tl.float32)
        bits = (tl.maximum(tl.max(tl.abs(numbers), axis=1), least) * inverse).to(tl.int32, bitcast=True)
        bits = ((bits + 0x7FFFFF) >> 23) << 23
        # Divided, a number might be off in its last places on a GPU, and one between two others round the other way.
        inverse_scale = (0x7F000000 - bits).to(tl.float32, bitcast=True)
        tl.store(values + places, (numbers * inverse_scale[:, None]).to(values.dtype.element_ty), mask=inside)
        tl.store(scales + row, bits.to(tl.float32, bitcast=True).to(tl.bfloat16), mask=row < count)

    @triton.jit
    def _unpack(values, scales, out, count, ROWS: tl.constexpr, WIDTH: tl.constexpr):
        row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
        places = row[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
        inside = (row < count)[:, None]
        scale = tl.load(scales + row, mask=row < count, other=0.0).to(tl.float32)
        numbers = tl.load(values + places, mask=inside, other=0.0).to(tl.float32) * scale[:, None]
        tl.store(out + places, numbers.to(out.dtype.element_ty), mask=inside)
