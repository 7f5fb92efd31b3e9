"""What `--context-pass reuse` changes in the picture: `python -m benchmarks.context_pass`; or another --change.

The tiny world with its trained weights, on a CPU: the same walks as it comes and with the option. By time into the
walk: relative error of the latents and PSNR of the frames against the exact walk; and, because two good worlds may
differ, how far each is from the renderer's own picture at the same pose (mean absolute difference of RGB in [0, 1],
pictures made 4 times smaller, the last frames of the last 4 chunks). Limit: an error of 0, which a second exact walk
has. Seconds a chunk, medians, say what it saves here.
"""

import argparse
import statistics
import sys
import time
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks import machine
from benchmarks.prompt_change import KEYS, distances, poses
from benchmarks.throughput import closeness_of
from pipeline.chunk import Control, Ended, SessionSpec
from pipeline.engine import Engine, build
from pipeline.tiny.renderer import Renderer

PROMPTS = ("a green meadow by day", "a desert by day", "a lantern garden at night", "a snowy forest at dusk, snowfall")
CHANGES = ("context_pass=reuse", "cache=fp8", "attention=fp8")
SPANS = ((0, 1), (1, 2), (2, 8), (8, 16), (16, 32), (32, 64))
"""Chunks from the first number up to the second, which are shown together."""
DRAWN = 4
"""Chunks of each that the renderer draws, which takes longer than to make them."""


class Walk(NamedTuple):
    """latents: (chunks, C, T, h, w); frames by chunk, (N, H, W, 3) uint8 each; seconds by chunk."""

    latents: np.ndarray
    frames: list[np.ndarray]
    seconds: list[float]


def main(argv: list[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    print("limit: an error of 0, that of a second exact walk; trained weights, free-running", flush=True)
    option, changed = options.change.split("=")
    engines = {"exact": build("tiny", slots=1, device="cpu")}
    engines[changed] = build("tiny", slots=1, device="cpu", **{option: changed})
    seeds = [(seed, prompt) for seed in range(options.seeds) for prompt in PROMPTS]
    walks = {how: [walk(engine, *each, options.chunks) for each in seeds] for how, engine in engines.items()}
    rows = [row(walks, seeds, first, min(last, options.chunks)) for first, last in SPANS if first < options.chunks]
    for each in rows:
        print(each, flush=True)
    seconds = {how: round(statistics.median(s for one in each for s in one.seconds), 4) for how, each in walks.items()}
    print(f"seconds a chunk: {seconds}")
    facts = {
        "preset": "tiny",
        "change": options.change,
        "walks": len(seeds),
        "chunks": options.chunks,
        "seconds_a_chunk": seconds,
    }
    machine.finish({"benchmark": "context_pass", **machine.facts(), **facts, "rows": rows}, options.save)
    return 0


def walk(engine: Engine, seed: int, prompt: str, chunks: int) -> Walk:
    engine.open(SessionSpec("walk", prompt, seed))
    frames, seconds = [], []
    try:
        for chunk in range(chunks):
            engine.control("walk", Control(chunk, KEYS))
            begun = time.perf_counter()
            (made,) = engine.step()
            seconds.append(time.perf_counter() - begun)
            assert not isinstance(made, Ended), made.reason
            frames.append(made.frames)
        return Walk(engine.snapshot("walk").latents, frames, seconds)
    finally:
        engine.close("walk")


def row(walks: dict[str, list[Walk]], seeds: list[tuple[int, str]], first: int, last: int) -> dict[str, Any]:
    """What the chunks from `first` up to `last` are off by; medians over the walks."""
    exact, changed = walks.values()
    pairs = list(zip(changed, exact, strict=True))
    errors, decibels = zip(*(closeness_of(*(_part(one, first, last) for one in pair)) for pair in pairs), strict=True)
    found = {
        "chunks": [first + 1, last],
        "latent_error": round(statistics.median(errors), 4),
        "psnr": round(statistics.median(decibels), 1),
    }
    for how, each in walks.items():
        away = [_from_renderer(one, seed, prompt, first, last) for one, (seed, prompt) in zip(each, seeds, strict=True)]
        found[f"from_renderer_{how}"] = round(statistics.mean(away), 4)
    return found


def _part(one: Walk, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
    return one.latents[first:last], np.concatenate(one.frames[first:last])


def _from_renderer(one: Walk, seed: int, prompt: str, first: int, last: int) -> float:
    first = max(first, last - DRAWN)
    shown = np.stack([frames[-1] for frames in one.frames[first:last]])
    pictures = torch.from_numpy(shown).movedim(-1, 1) / 255
    return statistics.mean(distances(Renderer(), pictures, poses(seed, last)[first:], prompt))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.context_pass", description=__doc__.splitlines()[0])
    parser.add_argument("--change", choices=CHANGES, default=CHANGES[0], help=f"default: {CHANGES[0]}")
    parser.add_argument("--chunks", type=int, default=64, help="of a walk (default: 64)")
    parser.add_argument("--seeds", type=int, default=1, help="walks for each of the prompts (default: 1)")
    machine.add_output(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
