"""Linear layers of several precisions behind one constructor.

FP8 here is row-wise: each row of the input and each row of the weight has its own float32 scale, so that
y[i, j] = (xq[i] . wq[j]) * sx[i] * sw[j] + b[j], with xq, wq in float8_e4m3fn (largest value 448).
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

FP8 = torch.float8_e4m3fn
FP8_MAX = torch.finfo(FP8).max
FP8_CAPABILITY = (8, 9)
SMALLEST_AMAX = 1e-12  # a row of zeros must not divide by zero

PRECISIONS = ("plain", "fp8")


class Quantized(NamedTuple):
    """values: (N, K) float8_e4m3fn; scale: (N, 1) float32, so that values * scale is what was quantized."""

    values: Tensor
    scale: Tensor


def linear(in_features: int, out_features: int, bias: bool = True, precision: str = "plain") -> nn.Module:
    """A linear layer. "plain" computes in the dtype of its weights, "fp8" as the head of this file says.

    Both take the state dict of an `nn.Linear`; "fp8" quantizes it on loading. Raises ValueError for another precision.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"no linear precision {precision!r}; there are {', '.join(PRECISIONS)}")
    kind = Fp8Linear if precision == "fp8" else nn.Linear
    return kind(in_features, out_features, bias)


def quantize_rows(x: Tensor) -> Quantized:
    """x: (N, K) of any float dtype to float8 with one scale a row; the largest of each row becomes 448."""
    scale = x.float().abs().amax(dim=1, keepdim=True).clamp_min(SMALLEST_AMAX) / FP8_MAX
    return Quantized((x.float() / scale).clamp(-FP8_MAX, FP8_MAX).to(FP8), scale)


def fp8_matmul_reference(x: Quantized, weight: Quantized) -> Tensor:
    """x (N, K) times weight (M, K) transposed, (N, M) float32, in plain arithmetic."""
    return (x.values.float() @ weight.values.float().T) * x.scale * weight.scale.T


def fp8_matmul(x: Quantized, weight: Quantized) -> Tensor:
    """The same in the GPU's FP8 units, result bfloat16. Raises RuntimeError where the GPU has none."""
    if reason := fp8_missing(x.values.device):
        raise RuntimeError(f"FP8 linears cannot run: {reason}")
    return torch._scaled_mm(
        x.values,
        weight.values.T,
        scale_a=x.scale,
        scale_b=weight.scale.T,
        out_dtype=torch.bfloat16,
        use_fast_accum=True,
    )


def fp8_missing(device: torch.device) -> str | None:
    """Why `device` has no FP8 matrix units that torch can use, or None."""
    if device.type != "cuda":
        return f"{device} is not a CUDA device"
    if (found := torch.cuda.get_device_capability(device)) < FP8_CAPABILITY:
        return f"it needs compute capability 8.9 or later, this GPU has {found[0]}.{found[1]}"
    return None


class Fp8Linear(nn.Module):
    """A linear layer with row-wise FP8 weights; input features a multiple of 16 on a GPU.

    On a CPU it computes the reference, which is slow and there for checking.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features, dtype=FP8), requires_grad=False)
        self.weight_scale = nn.Parameter(torch.empty(out_features, 1), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(out_features), requires_grad=False) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., in) to (..., out) in the same dtype."""
        rows = quantize_rows(x.flatten(0, -2))
        matmul = fp8_matmul if x.is_cuda else fp8_matmul_reference
        y = matmul(rows, Quantized(self.weight, self.weight_scale)).to(x.dtype)
        y = y if self.bias is None else y + self.bias.to(x.dtype)
        return y.unflatten(0, x.shape[:-1])

    def _load_from_state_dict(self, state_dict, prefix, *arguments):
        """Quantize what is not yet, before torch compares names and shapes."""
        weight = state_dict.get(prefix + "weight")
        if weight is not None and weight.dtype != FP8 and weight.ndim == 2:
            state_dict[prefix + "weight"], state_dict[prefix + "weight_scale"] = quantize_rows(weight)
        super()._load_from_state_dict(state_dict, prefix, *arguments)
