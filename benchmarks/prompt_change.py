"""How soon a new prompt is seen, with the past written anew under it ("rebuild") and without ("swap").

The number: video chunks from the one that first obeys the new prompt until the picture is nearer to the new scene than
to the old one and stays so. Both scenes are drawn by the tiny world's renderer at the pose where the viewer stands, so
"nearer" is the mean absolute difference of RGB in [0, 1], over pictures made 4 times smaller, in a chunk's last frame.
Besides, how far the picture is from the new scene at the end, beside the distance that a session has which knew no
other prompt: what is more is the old scene's answer.

    python -m benchmarks.prompt_change [--chunks N] [--seeds N]
"""

import argparse
import itertools
import json
import statistics
import time
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from pipeline import camera
from pipeline.chunk import Control, Ended, SessionSpec
from pipeline.engine import Engine, build
from pipeline.presets import PROMPT_CHANGES, find_preset
from pipeline.steering import starting_pose
from pipeline.tiny import scene
from pipeline.tiny.renderer import PHASES, Renderer

PRESET = find_preset("tiny")
BEFORE = 8
"""Chunks under the old prompt: a window."""
KEYS = frozenset("wl")
CHANGES = (
    ("a green meadow by day", "a lava field at night"),
    ("a desert by day", "a snowy forest at dusk, snowfall"),
    ("a lantern garden at night", "a sandy shore by day"),
)
COARSE = 4


class Trace(NamedTuple):
    """By chunk: the distance from the new scene, and from the old one."""

    new: list[float]
    old: list[float]

    def chunks_until_new(self) -> int:
        """How many chunks it takes; one more than were made where the picture never stays nearer to the new scene."""
        nearer = [new < old for new, old in zip(self.new, self.old, strict=True)]
        return len(nearer) + 1 - next((n for n, yes in enumerate(reversed(nearer)) if not yes), len(nearer))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chunks", type=int, default=6, help="chunks after the change (default: 6)")
    parser.add_argument("--seeds", type=int, default=1, help="walks for each pair of prompts (default: 1)")
    options = parser.parse_args(arguments)
    print("limit: 1 chunk, for a prompt is obeyed at a chunk's start; the training fades it in over 2 latent frames")
    renderer = Renderer()
    found = {change: _measure(renderer, change, options) for change in PROMPT_CHANGES}
    fresh = _fresh(renderer, options)
    for change, facts in found.items():
        print(
            f"{change:8} {facts['chunks_median']} chunks (from {facts['chunks_min']} to {facts['chunks_max']}); "
            f"distance at the end {facts['end']:.4f}, of a session that knew no other prompt {fresh:.4f}; "
            f"chunk of the change {facts['change_seconds']:.2f} s, median chunk {facts['chunk_seconds']:.2f} s"
        )
    found["fresh"] = {"end": fresh}
    print(json.dumps({"benchmark": "prompt_change", "preset": PRESET.name, **vars(options), "results": found}))
    return 0


def _measure(renderer: Renderer, change: str, options: argparse.Namespace) -> dict[str, float]:
    engine = build("tiny", slots=1, device="cpu", prompt_change=change)
    traces, change_seconds, seconds = [], [], []
    for seed, (old, new) in itertools.product(range(options.seeds), CHANGES):
        frames, times = _run(engine, seed, old, new, options.chunks)
        traces.append(_trace(renderer, seed, frames, old, new))
        change_seconds.append(times[BEFORE])
        seconds += times[BEFORE + 1 :]
    counts = [trace.chunks_until_new() for trace in traces]
    return {
        "chunks_median": statistics.median(counts),
        "chunks_min": min(counts),
        "chunks_max": max(counts),
        "end": statistics.mean(trace.new[-1] for trace in traces),
        "new_by_chunk": [round(statistics.mean(ds), 4) for ds in zip(*(t.new for t in traces), strict=True)],
        "change_seconds": statistics.median(change_seconds),
        "chunk_seconds": statistics.median(seconds),
    }


def _fresh(renderer: Renderer, options: argparse.Namespace) -> float:
    """The distance from the new scene, at the same last pose, of sessions that began with the new prompt."""
    engine = build("tiny", slots=1, device="cpu")
    found = []
    for seed, (old, new) in itertools.product(range(options.seeds), CHANGES):
        frames, _ = _run(engine, seed, new, None, options.chunks)
        found.append(_trace(renderer, seed, frames[-1:], old, new, options.chunks - 1).new[0])
    return statistics.mean(found)


def _run(engine: Engine, seed: int, prompt: str, new: str | None, chunks: int) -> tuple[list[np.ndarray], list[float]]:
    """The last frame of each chunk after the change and the seconds of all chunks."""
    engine.open(SessionSpec("walk", prompt, seed))
    frames, times = [], []
    try:
        for chunk in range(BEFORE + chunks):
            engine.control("walk", Control(chunk, KEYS, new if chunk == BEFORE else None))
            begun = time.perf_counter()
            (made,) = engine.step()
            times.append(time.perf_counter() - begun)
            assert not isinstance(made, Ended), made.reason
            frames.append(made.frames[-1])
    finally:
        engine.close("walk")
    return frames[BEFORE:], times


def _trace(renderer: Renderer, seed: int, frames: list[np.ndarray], old: str, new: str, skip: int = 0) -> Trace:
    """`frames` are those of the chunks from BEFORE + skip on."""
    walked = poses(seed, BEFORE + skip + len(frames))[BEFORE + skip :]
    pictures = torch.stack([torch.from_numpy(frame).movedim(-1, 0) / 255 for frame in frames])
    return Trace(*(distances(renderer, pictures, walked, prompt) for prompt in (new, old)))


def distances(renderer: Renderer, pictures: torch.Tensor, poses: list[camera.Pose], prompt: str) -> list[float]:
    count = len(poses)
    drawn = renderer.render(
        torch.tensor(poses, dtype=torch.float32),
        torch.tensor([scene.understand(prompt).scene]).expand(count, -1),
        torch.full((count,), PHASES - 1),
        PRESET.height,
        PRESET.width,
        oversample=1,
    )
    gap = F.avg_pool2d(drawn, COARSE) - F.avg_pool2d(pictures, COARSE)
    return gap.abs().mean(dim=(1, 2, 3)).tolist()


def poses(seed: int, chunks: int) -> list[camera.Pose]:
    """Where the viewer stands in the last frame of each chunk."""
    pose, found = starting_pose(PRESET, seed), []
    for _ in range(chunks):
        for _ in range(PRESET.chunk_frames):
            pose = camera.step(pose, KEYS, float(np.radians(PRESET.pitch_limit)))
        found.append(pose)
    return found


if __name__ == "__main__":
    raise SystemExit(main())
