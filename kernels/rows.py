"""The regions of kernels.fused that a compiler makes slow, each as one kernel that reads its rows once.

In float32 between what is read and what is written. B slots, L tokens, H heads, D head width, C model width.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from kernels.fp8 import FP8, FP8_MAX, SMALLEST_AMAX, Quantized, fits_fp8, quantize, quantize_gelu
from kernels.fused import EPSILON, Regions, Rows
from kernels.handmade import LONGEST, Handmade, row_blocks

try:
    import triton
    import triton.language as tl
except ImportError:  # torch for a CPU comes without it
    triton = None
else:
    from kernels.handmade import load_part, store_part, store_quantized


def by_hand(regions: Regions, quantized: bool) -> Regions:
    """`regions` with these in place of theirs for what is on a GPU; `quantized`: for FP8 linears."""
    kernels: dict[str, Callable] = {
        "enter": functools.partial(enter, quantized=quantized),
        "heads": heads,
        "after_text": functools.partial(after_text, quantized=quantized),
    }
    if quantized:
        kernels |= {"activate": quantize_gelu, "as_rows": quantize}
    fits = fits_fp8 if quantized else lambda x: x.shape[-1] <= LONGEST
    return regions._replace(**{name: Handmade(each, getattr(regions, name), fits) for name, each in kernels.items()})


def enter(x: Tensor, terms: Tensor, quantized: bool = False) -> Rows:
    """kernels.fused.enter. x: (B, L, C), terms: (B, 6, C) float32."""
    return _normed(x, None, terms, 0, quantized)[1]


def after_text(x: Tensor, update: Tensor, terms: Tensor, quantized: bool = False) -> tuple[Tensor, Rows]:
    """kernels.fused.after_text. x, update: (B, L, C), terms: (B, 6, C) float32."""
    return _normed(x, update, terms, 3, quantized)


def _normed(x: Tensor, update: Tensor | None, terms: Tensor, shift: int, quantized: bool) -> tuple[Tensor, Rows]:
    """x, with `update` if there is one, and its modulated norm; the scale's term follows the shift's."""
    x, width, blocks = x.contiguous(), x.shape[-1], row_blocks(x.shape[-1])
    out = torch.empty_like(x, dtype=FP8 if quantized else x.dtype)
    scale = x.new_empty((*x.shape[:-1], 1), dtype=torch.float32) if quantized else None
    summed = x if update is None else torch.empty_like(x)
    _norm[(x.numel() // width,)](
        x, update if update is None else update.contiguous(), summed, terms.contiguous(), out, scale, x.shape[1], width,
        shift, EPSILON, SMALLEST_AMAX, FP8_MAX, ADDS=update is not None, QUANTIZES=quantized, **blocks,
    )  # fmt: skip
    return summed, Quantized(out, scale) if quantized else out


def heads(
    q: Tensor, k: Tensor, weights: tuple[Tensor, Tensor], rotary: tuple[Tensor, Tensor], count: int
) -> tuple[Tensor, Tensor]:
    """kernels.fused.heads. q, k: (B, L, C), which may be parts of longer rows; gives (B, L, H, D) twice."""
    (q, q_step), (k, k_step) = _in_step(q), _in_step(k)
    shape, width, blocks = q.shape, q.shape[-1], row_blocks(q.shape[-1])
    q_out, k_out = (torch.empty(shape, dtype=each.dtype, device=each.device) for each in (q, k))
    angles = [each.contiguous() for each in rotary]
    _turned_heads[(shape[0] * shape[1],)](
        q, k, *weights, *angles, q_out, k_out, q_step, k_step, width, EPSILON, HALF=width // count // 2, **blocks
    )
    return q_out.unflatten(-1, (count, -1)), k_out.unflatten(-1, (count, -1))


def _in_step(x: Tensor) -> tuple[Tensor, int]:
    """(B, L, C) whose rows are all as far from one another, and how far."""
    if x.stride(-1) == 1 and x.stride(0) == x.shape[1] * x.stride(1):
        return x, x.stride(1)
    return x.reshape(-1).view(x.shape), x.shape[-1]


if triton is not None:

    @triton.jit
    def _norm(
        x, update, summed, terms, out, scales, tokens, width, shift, epsilon, least, largest,
        ADDS: tl.constexpr, QUANTIZES: tl.constexpr, FIRST: tl.constexpr, REST: tl.constexpr,
    ):  # fmt: skip
        row = tl.program_id(0).to(tl.int64)
        at = row * width
        first, rest = load_part(x + at, 0, width, FIRST), load_part(x + at, FIRST, width, REST)
        if ADDS:
            first += load_part(update + at, 0, width, FIRST)
            rest += load_part(update + at, FIRST, width, REST)
            store_part(summed + at, 0, width, first, FIRST)
            store_part(summed + at, FIRST, width, rest, REST)
        mean = (tl.sum(first, axis=0) + tl.sum(rest, axis=0)) / width
        first, rest = first - mean, tl.where(FIRST + tl.arange(0, REST) < width, rest - mean, 0.0)
        size = tl.rsqrt((tl.sum(first * first, axis=0) + tl.sum(rest * rest, axis=0)) / width + epsilon)
        term = terms + (row // tokens * 6 + shift) * width
        first = first * size * (1 + load_part(term + width, 0, width, FIRST)) + load_part(term, 0, width, FIRST)
        rest = rest * size * (1 + load_part(term + width, FIRST, width, REST)) + load_part(term, FIRST, width, REST)
        if QUANTIZES:
            store_quantized(out + at, scales + row, width, first, rest, least, largest, FIRST, REST)
        else:
            store_part(out + at, 0, width, first, FIRST)
            store_part(out + at, FIRST, width, rest, REST)

    @triton.jit
    def _turned_heads(
        q, k, q_weight, k_weight, cos, sin, q_out, k_out, q_stride, k_stride, width, epsilon,
        HALF: tl.constexpr, FIRST: tl.constexpr, REST: tl.constexpr,
    ):  # fmt: skip
        row = tl.program_id(0).to(tl.int64)
        cos, sin = cos + row * HALF, sin + row * HALF
        _turned_row(q + row * q_stride, q_weight, cos, sin, q_out + row * width, width, epsilon, HALF, FIRST, REST)
        _turned_row(k + row * k_stride, k_weight, cos, sin, k_out + row * width, width, epsilon, HALF, FIRST, REST)

    @triton.jit
    def _turned_row(
        x, weight, cos, sin, out, width, epsilon, HALF: tl.constexpr, FIRST: tl.constexpr, REST: tl.constexpr
    ):
        first, rest = load_part(x, 0, width, FIRST), load_part(x, FIRST, width, REST)
        size = tl.rsqrt((tl.sum(first * first, axis=0) + tl.sum(rest * rest, axis=0)) / width + epsilon)
        first = first * size * load_part(weight, 0, width, FIRST)
        rest = rest * size * load_part(weight, FIRST, width, REST)
        store_part(out, 0, width, _turned(first, cos, sin, 0, HALF, FIRST), FIRST)
        store_part(out, FIRST, width, _turned(rest, cos, sin, FIRST // 2, HALF, REST), REST)

    @triton.jit
    def _turned(x, cos, sin, start, HALF: tl.constexpr, BLOCK: tl.constexpr):
        """Its interleaved pairs, the first of which is the row's `start`th, turned by their angles."""
        even, odd = tl.split(tl.reshape(x, (BLOCK // 2, 2)))
        angle = (start + tl.arange(0, BLOCK // 2)) % HALF
        c, s = tl.load(cos + angle), tl.load(sin + angle)
        return tl.reshape(tl.join(even * c - odd * s, even * s + odd * c), (BLOCK,))
