"""Long walks through the tiny world: does it stay well?"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import tiny_measures as measures
from benchmarks.tiny_measures import as_floats, share
from benchmarks.tiny_rows import LONG, Bench, compared, drawing, obeyed, rounded, scenes_of
from benchmarks.tiny_truth import motion
from benchmarks.tiny_walks import Record, Walk, poses, random_keys, random_scene
from pipeline.camera import FRAMES_PER_LATENT
from pipeline.chunk import SessionSpec
from pipeline.tiny import scene

EDGE_FRAMES = 1000
"""Frames at both ends of a long walk between which obedience must not differ."""
POINTS = 100
"""Of a series, about."""
COLOUR_POINTS = 5
"""Points of a series whose colours are counted together."""
STILL = 0.2
"""A picture is frozen that changes by less than this share of the least that the renderer's changes."""


def plan_long(count: int, frames: int) -> list[Walk]:
    """One prompt each, keys at random for `frames` video frames."""
    return [_long(LONG + number, frames // FRAMES_PER_LATENT) for number in range(count)]


def _long(seed: int, chunks: int) -> Walk:
    draw, sampled = drawing(seed), frozenset(range(_stride(chunks) - 1, chunks, _stride(chunks)))
    wanted = random_scene(draw)
    first, last = edges(chunks)
    return Walk(
        SessionSpec(f"long-{seed}", scene.sentence(wanted), seed),
        random_keys(draw, chunks),
        {0: wanted},
        {},
        frozenset({*first, *last}),
        sampled,
    )


def _stride(chunks: int) -> int:
    return max(1, chunks // POINTS)


def edges(chunks: int) -> tuple[range, range]:
    """The chunks of the first and of the last EDGE_FRAMES."""
    count = min(EDGE_FRAMES // FRAMES_PER_LATENT, chunks)
    return range(count), range(chunks - count, chunks)


def stays_well(records: Sequence[Record], bench: Bench) -> dict[str, Any]:
    """Sharpness, colours, movement and obedience from the first frame to the last."""
    chunks = min(record.chunks for record in records)
    series = _series(records, bench, chunks)
    found: dict[str, Any] = {
        "frames": chunks * FRAMES_PER_LATENT,
        "seeds": len(records),
        "ended": [record.ended for record in records if record.ended],
        "goal": "sharpness_ratio 0.8 to 1.2; colour_ratio < 1.5; frozen 0; obedience last as first",
    }
    found |= _edges(records, bench)
    colours, between = series["colour_distance"], series["colour_distance_seeds"]
    found |= {
        "sharpness_ratio": [min(series["sharpness_ratio"]), max(series["sharpness_ratio"])],
        "colour_ratio": round(max(a / max(b, 1e-6) for a, b in zip(colours, between, strict=True)), 3),
    }
    return found | {"series": series}


def _series(records: Sequence[Record], bench: Bench, chunks: int) -> dict[str, list[float]]:
    """By sampled chunk, over all seeds."""
    sampled = [chunk for chunk in sorted(records[0].walk.full) if chunk < chunks]
    made = torch.stack([torch.stack([record.full[chunk] for record in records]) for chunk in sampled])
    stands = torch.stack([poses(record.walk)[1:][sampled] for record in records], dim=1)
    scenes = torch.stack([scenes_of(record.walk, sampled) for record in records], dim=1)
    flat = (stands.flatten(0, 1), scenes.flatten(0, 1))
    truth = bench.truth.full(*flat)
    others = bench.truth.full(stands.roll(1, dims=1).flatten(0, 1), flat[1])
    shape = (len(sampled), len(records))
    psnr, _, sharp = (each.unflatten(0, shape) for each in compared(made.flatten(0, 1), truth))
    own, other = _colour_distances(made, truth.unflatten(0, shape), others.unflatten(0, shape))
    frames = [(chunk + 1) * FRAMES_PER_LATENT for chunk in sampled]
    return {
        "frame": frames,
        "sharpness_ratio": rounded(sharp.log().mean(1).exp()),
        "psnr_median": rounded(psnr.median(1).values, 2),
        "psnr_least": rounded(psnr.amin(1), 2),
        "colour_frame": frames[COLOUR_POINTS - 1 :: COLOUR_POINTS] or frames[-1:],
        "colour_distance": own,
        "colour_distance_seeds": other,
    }


def _colour_distances(made: Tensor, truth: Tensor, others: Tensor) -> tuple[list[float], list[float]]:
    """Model from renderer, and renderer from the same scene along another seed's walk; (points, seeds, 3, H, W)."""
    own, other = [], []
    starts = range(0, max(1, len(made) - COLOUR_POINTS + 1), COLOUR_POINTS)
    for first in starts:
        part = slice(first, first + COLOUR_POINTS)
        distances = []
        for seed in range(made.shape[1]):
            kinds = [measures.histogram(as_floats(each[part, seed])) for each in (made, truth, others)]
            distances.append([measures.histogram_distance(kinds[i], kinds[1]) for i in (0, 2)])
        means = np.mean(distances, axis=0)
        own.append(round(float(means[0]), 4))
        other.append(round(float(means[1]), 4))
    return own, other


def _edges(records: Sequence[Record], bench: Bench) -> dict[str, Any]:
    """Obedience in the first and the last frames, and how often a picture stood still while a key was held."""
    first, last, still = [], [], []
    for record in records:
        found = [obeyed(record, part, bench) for part in edges(record.chunks) if all(c in record.small for c in part)]
        first += [each["model"] for each in found[:1]]
        last += [each["model"] for each in found[1:]]
        if found:
            still.append(_frozen(record, found))
    frozen = torch.cat(still) if still else torch.zeros(0)
    return {
        "obedience_first": measures.pooled(first) if first else None,
        "obedience_last": measures.pooled(last) if last else None,
        "frozen": share(frozen),
        "chunks_with_a_key": len(frozen),
    }


def _frozen(record: Record, found: Sequence[dict[str, Tensor]]) -> Tensor:
    """Of each chunk that moves, whether its picture does so less than STILL of the least that the renderer's does."""
    least = min(float(each["renderer_changes"][each["moving"]].amin()) for each in found if each["moving"].any())
    stands = poses(record.walk)[1 : record.chunks + 1]
    moving = (measures.directions(motion(stands[:-1], stands[1:]))[:, :3] != 0).any(1)
    return (torch.stack(record.changes).cpu() < STILL * least)[moving]
