"""The steps between the matrix products of a block: norms, modulation, gates, rotary embedding.

Each computes in float32 and returns the dtype of its first argument, so weights and activations may be bfloat16.
Below them are the regions: all that lies between one matrix product or attention and the next, as one function each,
to be run plainly or compiled (kernels.compiled) into one pass over the memory.
B slots, L tokens, H heads, D head width, C model width.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.fp8 import Quantized, quantize_rows

EPSILON = 1e-6


def norm_modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LN(x) * (1 + scale) + shift, LN without affine. x: (B, L, C); shift, scale: (B, 1, C) float32."""
    normed = F.layer_norm(x.float(), x.shape[-1:], eps=EPSILON)
    return torch.addcmul(shift, normed, 1 + scale).to(x.dtype)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """LN(x) with affine. x: (..., C); weight, bias: (C,)."""
    return F.layer_norm(x.float(), x.shape[-1:], weight.float(), bias.float(), EPSILON).to(x.dtype)


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """x / sqrt(mean(x^2) + 1e-6) * weight over the last axis. x: (..., C); weight: (C,)."""
    return F.rms_norm(x.float(), x.shape[-1:], weight.float(), EPSILON).to(x.dtype)


def gated_add(x: Tensor, update: Tensor, gate: Tensor) -> Tensor:
    """x + update * gate, the residual of a modulated block. x, update: (B, L, C); gate: (B, 1, C) float32."""
    return torch.addcmul(x.float(), update.float(), gate).to(x.dtype)


def modulate(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """(1 + scale) * x + shift, the camera's hold on the stream. x, scale, shift: (B, L, C)."""
    x32 = x.float()
    return torch.addcmul(x32 + shift, x32, scale.float()).to(x.dtype)


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the interleaved pairs (x[2i], x[2i+1]) by their angles.

    x: (B, L, H, D); cos, sin: (B, L, D/2) float32. Real arithmetic in place of the complex product of the RoFormer
    paper (arXiv 2104.09864): it takes every dtype and compiles. On a CPU in float32 whole rows are read, which gives
    the same bits in a third of the time.
    """
    if x.device.type == "cpu" and x.dtype == torch.float32 and x.is_contiguous():
        return _rope_by_rows(x, cos, sin)
    return _rope_by_parts(x, cos, sin)


def _rope_by_rows(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    # Times i each pair becomes (-x[2i+1], x[2i]), exactly. The turn itself as a complex product would not be: where a
    # row ends, torch's may be contracted to fused multiply-adds.
    quarter = torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * 1j).flatten(-2)
    cos, sin = (torch.view_as_real(torch.complex(part, part)).flatten(-2).unsqueeze(2) for part in (cos, sin))
    return (x * cos).add_(quarter * sin)  # both factors twice, for both numbers of a pair


def _rope_by_parts(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos.unsqueeze(2), sin.unsqueeze(2)
    turned = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1)
    return turned.flatten(-2).to(x.dtype)


def rope_in_place_order(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """rope(), written so that a compiler reads and writes whole rows: each number beside its pair's other one.

    The same products and sums; where a compiler contracts them to fused multiply-adds, the last bit may differ.
    """
    pairs = x.float().unflatten(-1, (-1, 2))
    turned = pairs * cos[:, :, None, :, None] + pairs.flip(-1) * torch.stack((-sin, sin), dim=-1)[:, :, None]
    return turned.flatten(-2).to(x.dtype)


# The regions of a block. `terms` is (B, 6, C) float32: shift, scale, gate of self-attention, then those of the FFN.

Rows = Tensor | Quantized
"""What a linear layer takes: (B, L, C), or the same quantized."""


def enter(x: Tensor, terms: Tensor) -> Tensor:
    """What self-attention's linears see of the stream. x: (B, L, C)."""
    return norm_modulate(x, terms[:, 0:1], terms[:, 1:2])


def heads(q: Tensor, k: Tensor, weights: tuple[Tensor, Tensor], rotary: tuple[Tensor, Tensor], count: int):
    """Normed, split and rotated. q, k: (B, L, C); weights: (C,) each; rotary as in rope(). Gives (B, L, H, D) twice."""
    turned = (rope(rms_norm(x, w).unflatten(-1, (count, -1)), *rotary) for x, w in zip((q, k), weights, strict=True))
    return tuple(turned)


def heads_in_place_order(q: Tensor, k: Tensor, weights: tuple[Tensor, Tensor], rotary: tuple[Tensor, Tensor], count):
    """heads() for a compiler, see rope_in_place_order()."""
    normed = (rms_norm(x, w).unflatten(-1, (count, -1)) for x, w in zip((q, k), weights, strict=True))
    return tuple(rope_in_place_order(x, *rotary) for x in normed)


def after_attention(
    x: Tensor, update: Tensor, terms: Tensor, camera: tuple[Tensor, Tensor] | None, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    """The stream after self-attention and the camera (its scale and shift), and what cross-attention sees of it."""
    x = gated_add(x, update, terms[:, 2:3])
    if camera is not None:
        x = modulate(x, *camera)
    return x, layer_norm(x, weight, bias)


def query(q: Tensor, weight: Tensor, count: int) -> Tensor:
    """Cross-attention's queries, normed and split. q: (B, L, C)."""
    return rms_norm(q, weight).unflatten(-1, (count, -1))


def after_text(x: Tensor, update: Tensor, terms: Tensor) -> tuple[Tensor, Tensor]:
    """The stream after cross-attention, and what the FFN sees of it."""
    x = x + update
    return x, norm_modulate(x, terms[:, 3:4], terms[:, 4:5])


def activate(hidden: Tensor) -> Tensor:
    """GELU in its tanh form, between the FFN's two products."""
    return F.gelu(hidden, approximate="tanh")


def leave(x: Tensor, update: Tensor, terms: Tensor) -> Tensor:
    """The stream after the FFN."""
    return gated_add(x, update, terms[:, 5:6])


def as_rows(x: Tensor) -> Tensor:
    """What a linear layer gets of an attention's result."""
    return x


class Regions(NamedTuple):
    """A way to run the regions; where one gives a linear layer's input, it is what that layer takes best (Rows)."""

    enter: Callable[[Tensor, Tensor], Rows] = enter
    heads: Callable[..., tuple[Tensor, Tensor]] = heads
    after_attention: Callable[..., tuple[Tensor, Rows]] = after_attention
    query: Callable[[Tensor, Tensor, int], Tensor] = query
    after_text: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Rows]] = after_text
    activate: Callable[[Tensor], Rows] = activate
    leave: Callable[[Tensor, Tensor, Tensor], Tensor] = leave
    as_rows: Callable[[Tensor], Rows] = as_rows


PLAIN = Regions()
WHOLE_ROWS = Regions(heads=heads_in_place_order)
"""The same for a compiler."""


def quantizing(regions: Regions) -> Regions:
    """The same regions for FP8 linears: rows are quantized where they are made, before they reach the memory."""

    def rows(region: Callable[..., Tensor]) -> Callable[..., Quantized]:
        return lambda *inputs: quantize_rows(region(*inputs))

    def beside(region: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., tuple[Tensor, Quantized]]:
        def run(*inputs):
            x, normed = region(*inputs)
            return x, quantize_rows(normed)

        return run

    return regions._replace(
        enter=rows(regions.enter),
        after_attention=beside(regions.after_attention),
        after_text=beside(regions.after_text),
        activate=rows(regions.activate),
        as_rows=rows(regions.as_rows),
    )
