"""What pictures are measured by: plain functions of tensors, known to no model.

N pictures, H W their height and width; pictures are float in [0, 1] unless a line says otherwise.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

BINS = 8
"""Of each colour channel in a histogram."""
WINDOW = 8
"""Side of the squares in which structural similarity compares, in pixels."""
LUMA = (0.299, 0.587, 0.114)


def as_floats(pictures: Tensor) -> Tensor:
    """uint8 to [0, 1]."""
    return pictures.float() / 255


def psnr(made: Tensor, truth: Tensor) -> Tensor:
    """Decibels of each picture, (N,)."""
    return decibels((made - truth).square().mean((1, 2, 3)))


def decibels(error: Tensor) -> Tensor:
    """Of mean squared errors of a range of 1; at most 99, which is the same picture."""
    return (-10 * torch.log10(error)).clamp(max=99.0)


def ssim(made: Tensor, truth: Tensor) -> Tensor:
    """Structural similarity of luma, (N,), after Wang et al. 2004, in even windows, half overlapping."""
    a, b = luma(made), luma(truth)

    def mean(x: Tensor) -> Tensor:
        return F.avg_pool2d(x, WINDOW, WINDOW // 2)

    mean_a, mean_b = mean(a), mean(b)
    variance_a, variance_b = mean(a * a) - mean_a.square(), mean(b * b) - mean_b.square()
    together = mean(a * b) - mean_a * mean_b
    small, smaller = 0.01**2, 0.03**2
    top = (2 * mean_a * mean_b + small) * (2 * together + smaller)
    bottom = (mean_a.square() + mean_b.square() + small) * (variance_a + variance_b + smaller)
    return (top / bottom).mean((1, 2, 3))


def sharpness(pictures: Tensor) -> Tensor:
    """Mean energy of luma's gradients, (N,); above 0 for any picture."""
    grey = luma(pictures)
    return 1e-9 + grey.diff(dim=-1).square().mean((1, 2, 3)) + grey.diff(dim=-2).square().mean((1, 2, 3))


def luma(pictures: Tensor) -> Tensor:
    """(N, 1, H, W), the brightness that BT.601 gives a colour."""
    return (pictures * pictures.new_tensor(LUMA)[:, None, None]).sum(1, keepdim=True)


def histogram(pictures: Tensor) -> Tensor:
    """Shares of BINS^3 colours over all pictures together, (BINS^3,)."""
    levels = (pictures * BINS).long().clamp(0, BINS - 1)
    colour = (levels[:, 0] * BINS + levels[:, 1]) * BINS + levels[:, 2]
    counts = torch.bincount(colour.flatten(), minlength=BINS**3)
    return counts.float() / counts.sum()


def histogram_distance(one: Tensor, other: Tensor) -> float:
    """Half the sum of differences: 0 for the same colours, 1 for none in common."""
    return float((one - other).abs().sum() / 2)


def frechet_distance(one: Tensor, other: Tensor) -> float:
    """Between the normal distributions that fit two sets of features, (N, D) and (M, D); after Heusel et al. 2017."""
    one, other = one.double(), other.double()
    c1, c2 = torch.cov(one.T), torch.cov(other.T)
    root = _root(c1)
    crossed = torch.linalg.eigvalsh(root @ c2 @ root).clamp(min=0).sqrt().sum()
    distance = (one.mean(0) - other.mean(0)).square().sum() + c1.trace() + c2.trace() - 2 * crossed
    return float(distance.clamp(min=0))


def _root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T


def share(flags: Tensor) -> float | None:
    """How many of `flags` are true, None where there are none."""
    return round(float(flags.float().mean()), 4) if flags.numel() else None


# Obedience


AXES = {"turn": [2], "walk": [0, 1]}
DEAD_ZONE = 0.35
"""Of a key's motion: less than that is standing still. Walking diagonally is 0.7 along each axis."""
NEAR = 0.25


def directions(motion: Tensor) -> Tensor:
    """-1, 0 or 1 along each axis of a motion as in tiny_truth.motion."""
    return torch.where(motion.abs() < DEAD_ZONE, 0, motion.sign()).long()


def obedience(true: Tensor, seen: Tensor, expected: Tensor, usable: Tensor) -> dict[str, dict[str, Tensor]]:
    """For turning and for walking, flags of one session by chunk; all motions (chunks, 4) as in tiny_truth.motion.

    `true` is the camera's own motion, `seen` what a probe sees in the model's pictures, `expected` in the renderer's.
    "obeyed": of each new key, whether its direction shows in its chunk or in the next one under the same key;
    "right": of each chunk with a key held, whether its direction shows; "near": whether besides its amount is
    within NEAR of the expected one. Chunks that are not `usable` (N,) give no flags.
    """
    found = {}
    for name, axes in AXES.items():
        wanted, shown = directions(true[:, axes]), directions(seen[:, axes])
        held = (wanted != 0).any(1)
        right = ((shown == wanted) | (wanted == 0)).all(1)
        same = (wanted[1:] == wanted[:-1]).all(1)
        soon = right.clone()
        soon[:-1] |= same & right[1:]
        new = held.clone()
        new[1:] &= ~same
        new[0] = False
        amount, due = seen[:, axes].norm(dim=1), expected[:, axes].norm(dim=1)
        near = right & ((amount - due).abs() <= NEAR * due)
        found[name] = {"obeyed": soon[new & usable], "right": right[held & usable], "near": near[held & usable]}
    return found


def pooled(flags: list[dict[str, dict[str, Tensor]]]) -> dict[str, dict[str, float | None]]:
    """The flags of many sessions as shares, with how many keys there were."""
    result = {}
    for name in AXES:
        kinds = {kind: torch.cat([each[name][kind] for each in flags]) for kind in ("obeyed", "right", "near")}
        result[name] = {kind: share(each) for kind, each in kinds.items()} | {"keys": len(kinds["obeyed"])}
    return result
