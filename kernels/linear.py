"""Linear layers of several precisions behind one constructor.

FP8 here is row-wise: each row of the input and each row of the weight has its own float32 scale (kernels.fp8), so that
y[i, j] = (xq[i] . wq[j]) * sx[i] * sw[j] + b[j], with xq, wq in float8_e4m3fn.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kernels.fp8 import FP8, Quantized, fp8_missing, quantize, quantize_rows

PRECISIONS = ("plain", "fp8")


def linear(in_features: int, out_features: int, bias: bool = True, precision: str = "plain") -> nn.Module:
    """A linear layer. "plain" computes in the dtype of its weights, "fp8" as the head of this file says.

    Both take the state dict of an `nn.Linear`; "fp8" quantizes it on loading. Raises ValueError for another precision.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"no linear precision {precision!r}; there are {', '.join(PRECISIONS)}")
    kind = Fp8Linear if precision == "fp8" else nn.Linear
    return kind(in_features, out_features, bias)


def join(layers: Sequence[nn.Module]) -> nn.Module:
    """One linear layer that gives side by side what several of one kind and input give, in a single product.

    The layers stay as they are, but their weights are now parts of its own: nothing is held twice, and what is loaded
    into them is loaded into it.
    """
    first = layers[0]
    with torch.device("meta"):
        joint = type(first)(first.weight.shape[1], sum(len(each.weight) for each in layers), first.bias is not None)
    for name, parameter in list(first.named_parameters()):
        sizes = [len(getattr(each, name)) for each in layers]
        whole = torch.empty((sum(sizes), *parameter.shape[1:]), dtype=parameter.dtype, device=parameter.device)
        setattr(joint, name, nn.Parameter(whole, requires_grad=False))
        for each, part in zip(layers, whole.split(sizes), strict=True):
            part.copy_(getattr(each, name).detach())
            setattr(each, name, nn.Parameter(part, requires_grad=False))
    return joint.eval()


def plain_weight(layer: nn.Module) -> Tensor:
    """(out, in) of a layer of either precision, as numbers."""
    return layer.weight.float() * layer.weight_scale if isinstance(layer, Fp8Linear) else layer.weight


def fp8_matmul_reference(x: Quantized, weight: Quantized, bias: Tensor | None = None) -> Tensor:
    """x (N, K) times weight (M, K) transposed plus bias (M,), (N, M) float32, in plain arithmetic."""
    y = (x.values.float() @ weight.values.float().T) * x.scale * weight.scale.T
    return y if bias is None else y + bias.float()


def fp8_matmul(x: Quantized, weight: Quantized, bias: Tensor | None = None) -> Tensor:
    """The same in the GPU's FP8 units, result bfloat16. Raises RuntimeError where the GPU has none."""
    if reason := fp8_missing(x.values.device):
        raise RuntimeError(f"FP8 linears cannot run: {reason}")
    return torch._scaled_mm(
        x.values,
        weight.values.T,
        scale_a=x.scale,
        scale_b=weight.scale.T,
        bias=None if bias is None else bias.bfloat16(),
        out_dtype=torch.bfloat16,
        use_fast_accum=True,
    )


class Fp8Linear(nn.Module):
    """A linear layer with row-wise FP8 weights; input features a multiple of 16 on a GPU.

    On a CPU it computes the reference, which is slow and there for checking.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features, dtype=FP8), requires_grad=False)
        self.weight_scale = nn.Parameter(torch.empty(out_features, 1), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(out_features), requires_grad=False) if bias else None

    def forward(self, x: Tensor | Quantized) -> Tensor:
        """x: (..., in), or the same quantized, to (..., out) in the dtype of x, else of the bias."""
        rows, dtype = (x, self._own_dtype) if isinstance(x, Quantized) else (quantize(x), x.dtype)
        shape = rows.values.shape[:-1]
        rows = Quantized(rows.values.flatten(0, -2), rows.scale.flatten(0, -2))
        matmul = fp8_matmul if rows.values.is_cuda else fp8_matmul_reference
        y = matmul(rows, Quantized(self.weight, self.weight_scale), self.bias)
        return y.to(dtype).unflatten(0, shape)

    @property
    def _own_dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.bias is None else self.bias.dtype

    def _load_from_state_dict(self, state_dict, prefix, *arguments):
        """Quantize what is not yet, before torch compares names and shapes."""
        weight = state_dict.get(prefix + "weight")
        if weight is not None and weight.dtype != FP8 and weight.ndim == 2:
            state_dict[prefix + "weight"], state_dict[prefix + "weight_scale"] = quantize_rows(weight)
        super()._load_from_state_dict(state_dict, prefix, *arguments)
