"""The steps between the matrix products of a block: norms, modulation, gates, rotary embedding.

Each computes in float32 and returns the dtype of its first argument, so weights and activations may be bfloat16.
B slots, L tokens, H heads, D head width, C model width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

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
    paper (arXiv 2104.09864): it takes every dtype and compiles.
    """
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos.unsqueeze(2), sin.unsqueeze(2)
    turned = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1)
    return turned.flatten(-2).to(x.dtype)
