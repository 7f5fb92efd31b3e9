"""The tiny world to look at: `python -m benchmarks.tiny_gallery -o docs/tiny-gallery.png`.

A grid with every place at several hours and in several weathers, the renderer's picture left and the model's right, at
the same pose after a walk of some seconds. Of a few walks a place the one is shown whose end has most to see, by the
renderer's picture. `--animation` writes a short walk of the model's alone through changing prompts, as WebP.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from benchmarks import tiny_measures as measures
from benchmarks.tiny_rows import GALLERY
from benchmarks.tiny_truth import Truth, draw_quickly
from benchmarks.tiny_walks import PRESET, Walk, poses, random_keys, run
from pipeline.chunk import Control, Ended, SessionSpec
from pipeline.device import choose_device
from pipeline.engine import Engine
from pipeline.load import load_parts
from pipeline.tiny import scene
from pipeline.tiny.clips import HEIGHT, WIDTH
from pipeline.tiny.landscape import HOURS, PLACES, WEATHERS
from pipeline.tiny.scene import Scene
from pipeline.tiny.trainee import Stop

CHUNKS = 16
"""Of the walk before a picture is taken: two windows."""
PAIRS_A_ROW = 2
LABEL = 14
"""Pixels of a caption's height."""
LOOKS = (
    ("day", "clear"),
    ("dusk", "clear"),
    ("day", "snow"),
    ("dawn", "clouds"),
    ("night", "fog"),
    ("night", "clear"),
    ("dawn", "clear"),
    ("dusk", "rain"),
)
"""Hour and weather of each place, in their order."""
TOUR = (
    ("a green meadow by day, clear sky", "w"),
    ("dusk", "wl"),
    ("a lantern garden at night", "w"),
    ("a sandy shore at dawn, clear sky", "wj"),
)
"""What the animation shows: a prompt and what is held under it."""
TOUR_CHUNKS = 8
LARGEST_ANIMATION = 2_000_000


def main(argv: list[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    device = choose_device(options.device)
    draw_quickly(device)
    truth = Truth(device)
    engine = Engine(PRESET, load_parts(PRESET, options.weights, device), slots=2, device=device, schedule="turns")
    grid(engine, truth, options.tries).save(options.output)
    print(f"{options.output}: {options.output.stat().st_size / 1e3:.0f} kB", flush=True)
    if options.animation:
        size = animate(tour(engine, options.seed), options.animation)
        print(f"{options.animation}: {size / 1e3:.0f} kB", flush=True)
    return 0


# The grid


def grid(engine: Engine, truth: Truth, tries: int) -> Image.Image:
    """All places, each as the renderer and as the model show it. SystemExit when Ctrl-C ends it."""
    walks = [_best_walk(number, truth, tries) for number in range(len(PLACES))]
    with Stop("stopping; nothing is drawn yet") as stop:
        records = run(engine, "gallery", walks, stop)
    if stop.asked:
        raise SystemExit(130)
    stands = torch.stack([poses(walk)[-1] for walk in walks])
    drawn = truth.full(stands, torch.tensor([walk.scenes[0] for walk in walks]))
    made = torch.stack([record.full[CHUNKS - 1] for record in records])
    rows = -(-len(walks) // PAIRS_A_ROW)
    sheet = Image.new("RGB", (PAIRS_A_ROW * 2 * WIDTH, rows * (HEIGHT + LABEL)), "white")
    for number, walk in enumerate(walks):
        x, y = number % PAIRS_A_ROW * 2 * WIDTH, number // PAIRS_A_ROW * (HEIGHT + LABEL)
        pen = ImageDraw.Draw(sheet)
        pen.text((x + 4, y + 1), f"{walk.spec.prompt}: renderer", fill="black")
        pen.text((x + WIDTH + 4, y + 1), "model", fill="black")
        sheet.paste(_image(drawn[number]), (x, y + LABEL))
        sheet.paste(_image(made[number]), (x + WIDTH, y + LABEL))
    return sheet


def _best_walk(place: int, truth: Truth, tries: int) -> Walk:
    """Of several the one that ends where the renderer's picture has the most edges."""
    hour, weather = LOOKS[place % len(LOOKS)]
    wanted = Scene(place, 0, list(HOURS).index(hour), list(WEATHERS).index(weather))
    walks = [_walk(GALLERY + 100 * place + number, wanted) for number in range(tries)]
    stands = torch.stack([poses(walk)[-1] for walk in walks])
    seen = truth.small(stands, torch.tensor([wanted] * tries))
    return walks[int(measures.sharpness(measures.as_floats(seen)).argmax())]


def _walk(seed: int, wanted: Scene) -> Walk:
    keys = random_keys(np.random.default_rng(seed), CHUNKS)
    spec = SessionSpec(f"gallery-{seed}", scene.sentence(wanted), seed)
    return Walk(spec, keys, {0: wanted}, {}, frozenset(), frozenset({CHUNKS - 1}))


def _image(picture: Tensor) -> Image.Image:
    return Image.fromarray(picture.movedim(0, -1).cpu().numpy())


# The animation


def tour(engine: Engine, seed: int) -> list[np.ndarray]:
    """All frames of a walk through TOUR."""
    engine.open(SessionSpec("tour", TOUR[0][0], seed))
    frames = []
    try:
        for prompt, keys in TOUR:
            for chunk in range(TOUR_CHUNKS):
                engine.control("tour", Control(len(frames), frozenset(keys), None if chunk else prompt))
                (made,) = engine.step(["tour"])
                if isinstance(made, Ended):
                    raise SystemExit(made.reason)
                frames += list(made.frames)
    finally:
        engine.close("tour")
    return frames


def animate(frames: Sequence[np.ndarray], output: Path) -> int:
    """Write an endless WebP, as good as LARGEST_ANIMATION bytes allow; returns its size."""
    images = [Image.fromarray(frame) for frame in frames]
    for quality in (80, 65, 50, 35, 20):
        images[0].save(
            output, save_all=True, append_images=images[1:], duration=round(1000 / PRESET.fps), loop=0, quality=quality
        )
        if output.stat().st_size < LARGEST_ANIMATION:
            break
    return output.stat().st_size


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tiny_gallery", description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="PNG")
    parser.add_argument("--animation", type=Path, metavar="WEBP")
    parser.add_argument("--weights", metavar="DIR", help="what `train tiny` wrote; default: the shipped ones")
    parser.add_argument("--tries", type=int, default=12, help="walks a place to choose from (default: 12)")
    parser.add_argument("--seed", type=int, default=5, help="where the animation's walk begins (default: 5)")
    parser.add_argument("--device", default="auto")
    return parser


if __name__ == "__main__":
    sys.exit(main())
