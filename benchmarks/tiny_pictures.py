"""Streams of the tiny world begun with a picture: do they go on from it?"""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter
from torch import Tensor

from benchmarks import tiny_measures as measures
from benchmarks.tiny_measures import as_floats, share
from benchmarks.tiny_rows import CHUNKS_A_SECOND, IMAGES, PHOTOS, Bench, agreement, drawing, rounded, scenes_of
from benchmarks.tiny_walks import PRESET, Record, Walk, poses, random_keys, random_scene
from pipeline.chunk import SessionSpec
from pipeline.steering import starting_pose
from pipeline.tiny import scene
from pipeline.tiny.clips import HEIGHT, WIDTH

NO_PROMPT = ""
"""The picture alone says which place, hour and weather."""


def plan_images(count: int, bench: Bench) -> list[Walk]:
    """Begun with a renderer's picture of any scene from any pose, and no word of it."""
    draw = drawing(IMAGES)
    scenes = [random_scene(draw) for _ in range(count)]
    stands = torch.tensor([starting_pose(PRESET, IMAGES + 10**4 + number) for number in range(count)])
    pictures = bench.truth.full(stands, torch.tensor(scenes))
    return [_image(IMAGES + n, png(picture), scenes[n]) for n, picture in enumerate(pictures)]


def _image(seed: int, picture: bytes, shown: scene.Scene) -> Walk:
    chunks = 3 * CHUNKS_A_SECOND
    keys = random_keys(drawing(seed), chunks)
    every = frozenset(range(chunks))
    return Walk(SessionSpec(f"image-{seed}", NO_PROMPT, seed, picture), keys, {0: shown}, {}, every, every)


def continues(records: Sequence[Record], bench: Bench) -> dict[str, Any]:
    """What the pictures 2 s after an uploaded one show, against what that one showed."""
    done = [record for record in records if record.chunks > 2 * CHUNKS_A_SECOND]
    at = 2 * CHUNKS_A_SECOND
    wanted = torch.stack([scenes_of(record.walk, [at])[0] for record in done])
    stands = torch.stack([poses(record.walk)[at + 1] for record in done])
    guessed = bench.probes.scenes(torch.stack([record.small[at] for record in done]))
    best = bench.probes.scenes(bench.truth.small(stands, wanted))
    return agreement(guessed, best, wanted) | {"goal": ">= 0.90 for place, hour, weather"}


def plan_photos(count: int) -> list[Walk]:
    """Begun with pictures that no renderer of ours made."""
    return [_image(PHOTOS + n, png(photo), scene.DEFAULT) for n, photo in enumerate(photos(count))]


def photos(count: int) -> list[Tensor]:
    """Made in code: gradients, noise, and soft skies over textured ground with round and square things in it."""
    kinds = (_gradient, _noise, _scenery)
    return [kinds[number % len(kinds)](drawing(PHOTOS + number)) for number in range(count)]


def _gradient(draw: np.random.Generator) -> Tensor:
    corners = torch.from_numpy(draw.uniform(0, 255, (1, 3, 2, 2))).float()
    return torch.nn.functional.interpolate(corners, (HEIGHT, WIDTH), mode="bilinear", align_corners=True)[0].byte()


def _noise(draw: np.random.Generator) -> Tensor:
    return torch.from_numpy(draw.integers(0, 256, (3, HEIGHT, WIDTH), dtype=np.uint8))


def _scenery(draw: np.random.Generator) -> Tensor:
    colours = [tuple(int(c) for c in draw.integers(0, 256, 3)) for _ in range(8)]
    picture = Image.new("RGB", (WIDTH, HEIGHT), colours[0])
    pen, horizon = ImageDraw.Draw(picture), int(HEIGHT * draw.uniform(0.35, 0.65))
    pen.rectangle((0, horizon, WIDTH, HEIGHT), fill=colours[1])
    for colour in colours[2:]:
        x, y, size = draw.uniform(0, WIDTH), draw.uniform(horizon - 40, HEIGHT), draw.uniform(10, 70)
        shape = pen.ellipse if draw.random() < 0.5 else pen.rectangle
        shape((x - size / 2, y - size, x + size / 2, y), fill=colour)
    grain = draw.normal(0, 12, (HEIGHT, WIDTH, 1))
    pixels = np.asarray(picture.filter(ImageFilter.GaussianBlur(1.5)), np.float64) + grain
    return torch.from_numpy(pixels.clip(0, 255).astype(np.uint8)).movedim(-1, 0)


def takes_photos(records: Sequence[Record]) -> dict[str, Any]:
    """Whether the stream stays well after any photo, and whose colours its first 2 s have."""
    begun = [_read(record.walk.spec.image) for record in records]
    own, other, sharp = [], [], []
    for number, record in enumerate(records):
        made = as_floats(torch.stack([record.full[c] for c in sorted(record.full) if c < 2 * CHUNKS_A_SECOND])).cpu()
        colours = measures.histogram(made)
        own.append(measures.histogram_distance(colours, measures.histogram(begun[number])))
        other.append(measures.histogram_distance(colours, measures.histogram(begun[number - 1])))
        sharp.append(measures.sharpness(made).mean())
    return {
        "ended": [record.ended for record in records if record.ended],
        "colour_distance": round(float(np.mean(own)), 4),
        "colour_distance_of_another": round(float(np.mean(other)), 4),
        "nearer_to_its_own": share(torch.tensor(own) < torch.tensor(other)),
        "sharpness": rounded((min(sharp), max(sharp)), 5),
        "photos": len(records),
        "goal": "none ended; colours nearer to its own photo than to another",
    }


def png(picture: Tensor) -> bytes:
    """An encoded picture of uint8 (3, H, W)."""
    data = io.BytesIO()
    Image.fromarray(picture.movedim(0, -1).cpu().numpy()).save(data, "PNG")
    return data.getvalue()


def _read(data: bytes) -> Tensor:
    pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    return as_floats(torch.from_numpy(pixels.copy()).movedim(-1, 0)[None])
