"""Muon (Jordan et al. 2024): momentum made orthogonal, for matrices and convolutions.

No direction of a matrix is then learnt faster than another; a convolution is one of channels out by all that each sees.
The size of an update is that of AdamW's (Liu et al. 2025), so that one rate serves both. Matrices of one shape are
updated together, and nothing is decided on the host.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of x + x^3 + x^5: five rounds bring every singular value from some hundredths near one."""
ROUNDS = 5
LIKE_ADAMW = 0.2
"""Root mean square of AdamW's updates, in rates."""


class Muon(torch.optim.Optimizer):
    """For parameters with two dimensions or more that all get gradients; `lr` may be a tensor, for CUDA graphs."""

    def __init__(
        self, matrices: Iterable[nn.Parameter], lr: float | Tensor, momentum: float = 0.95, weight_decay: float = 0.01
    ):
        super().__init__(matrices, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One step with the gradients that are there."""
        for group in self.param_groups:
            for alike in _by_shape(group["params"]):
                self._update(alike, group)

    def _update(self, matrices: Sequence[nn.Parameter], group: dict[str, Any]) -> None:
        gradients = torch.stack([matrix.grad.flatten(1) for matrix in matrices])
        state = self.state[matrices[0]]  # of all of them
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(gradients)
        momentum = state["momentum"].lerp_(gradients, 1 - group["momentum"])
        update = orthogonal(torch.lerp(gradients, momentum, group["momentum"]))
        size = group["lr"] * LIKE_ADAMW * max(update.shape[1:]) ** 0.5
        torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_sub_(matrices, [part.view_as(matrices[0]) for part in (size * update).unbind()])


def matrices_of(module: nn.Module) -> list[nn.Parameter]:
    """What Muon is for: all weights of a module that are matrices or convolutions of pictures."""
    return [weight for weight in module.parameters() if weight.ndim in (2, 4)]


def orthogonal(matrices: Tensor) -> Tensor:
    """(N, rows, columns) with singular values near one and the same singular vectors; by Newton-Schulz."""
    a, b, c = COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = (x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)).to(torch.bfloat16 if x.is_cuda else x.dtype)
    for _ in range(ROUNDS):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    x = x.to(matrices.dtype)
    return x.mT if tall else x


def _by_shape(matrices: Iterable[nn.Parameter]) -> list[list[nn.Parameter]]:
    found: dict[torch.Size, list[nn.Parameter]] = {}
    for matrix in matrices:
        found.setdefault(matrix.shape, []).append(matrix)
    return list(found.values())
