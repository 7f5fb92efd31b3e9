"""What the rows of the tiny world's table share: seeds, spreads, and the renderer as what each is held against.

A row has a plan (which walks) and a measure (what they show), beside it what the renderer's own pictures at the same
poses give by the same probe, which is the most that can be asked for. Shares are from 0 to 1, pictures uint8 until they
are measured.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks import tiny_measures as measures
from benchmarks.tiny_measures import as_floats, share
from benchmarks.tiny_probes import ATTRIBUTES, Probes
from benchmarks.tiny_truth import Truth, motion
from benchmarks.tiny_walks import PRESET, Record, Walk, poses, scene_at
from pipeline.camera import FRAMES_PER_LATENT

EVALUATION_SEED = 3 * 10**6
"""The first of the seeds that only this benchmark uses."""
SESSIONS, RETURNS, IMAGES, PHOTOS, LONG, CLIPS, GALLERY = (EVALUATION_SEED + 10**5 * n for n in range(7))
"""Where each row's seeds begin."""
CHUNKS_A_SECOND = PRESET.fps // FRAMES_PER_LATENT
FADING = 3
"""Chunks after a new prompt in which neither scene is judged, nor obedience."""
COMPARED_AT_ONCE = 64


class Bench(NamedTuple):
    """What every measure needs."""

    probes: Probes
    truth: Truth


def drawing(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def spread(values: Tensor) -> dict[str, float]:
    values = values.float().cpu()
    return {
        "median": round(float(values.quantile(0.5)), 2),
        "percentile_5": round(float(values.quantile(0.05)), 2),
        "mean": round(float(values.mean()), 2),
    }


def rounded(values: Iterable[float], digits: int = 4) -> list[float]:
    return [round(float(value), digits) for value in values]


def scenes_of(walk: Walk, chunks: Iterable[int]) -> Tensor:
    return torch.tensor([scene_at(walk, chunk) for chunk in chunks])


def usable(walk: Walk, chunks: Sequence[int]) -> Tensor:
    """Not while one prompt's picture fades into the next one's."""
    return torch.tensor([all(not at <= chunk < at + FADING for at in walk.prompts) for chunk in chunks])


def obeyed(record: Record, chunks: Sequence[int], bench: Bench) -> dict[str, Any]:
    """Flags of tiny_measures.obedience, and the renderer's, for neighbouring `chunks`, all but the first judged."""
    walk = record.walk
    stands = poses(walk)[1:][list(chunks)]
    drawn = bench.truth.small(stands, scenes_of(walk, chunks))
    made = torch.stack([record.small[chunk] for chunk in chunks])
    true = motion(stands[:-1], stands[1:])
    seen, expected = (bench.probes.motion(pictures[:-1], pictures[1:]) for pictures in (made, drawn))
    steady = usable(walk, chunks[1:])
    return {
        "model": measures.obedience(true, seen, expected, steady),
        "renderer": measures.obedience(true, expected, expected, steady),
        "renderer_changes": as_floats(drawn).diff(dim=0).abs().mean((1, 2, 3)).cpu(),
        "moving": (measures.directions(true)[:, :3] != 0).any(1) & steady,
    }


def compared(made: Tensor, truth: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """PSNR, SSIM and the ratio of sharpness of each pair of uint8 pictures, in parts that fit."""
    rows = [
        (measures.psnr(a, b), measures.ssim(a, b), measures.sharpness(a) / measures.sharpness(b))
        for a, b in (
            (as_floats(made[i : i + COMPARED_AT_ONCE]), as_floats(truth[i : i + COMPARED_AT_ONCE]))
            for i in range(0, len(made), COMPARED_AT_ONCE)
        )
    ]
    psnr, ssim, sharp = (torch.cat(part).cpu() for part in zip(*rows, strict=True))
    return psnr, ssim, sharp


def elsewhere(stands: Tensor) -> Tensor:
    """The same poses in another order, each far from its own in the list."""
    return stands.roll(len(stands) // 2, 0)


def agreement(guessed: Tensor, best: Tensor, wanted: Tensor) -> dict[str, Any]:
    """ "told": of what the probe tells rightly in the renderer's picture, how much it tells so in the model's."""
    model, renderer = guessed == wanted, best == wanted

    def shares(right: Tensor, rows: Tensor | None = None) -> dict[str, float | None]:
        parts = (right[:, i] if rows is None else right[:, i][rows[:, i]] for i in range(len(ATTRIBUTES)))
        return dict(zip(ATTRIBUTES, map(share, parts), strict=True))

    return {
        "model": shares(model),
        "renderer": shares(renderer),
        "told": shares(model, renderer),
        "pictures": len(wanted),
    }
