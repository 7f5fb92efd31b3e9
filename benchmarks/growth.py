"""What a chunk costs as things grow: `python -m benchmarks.growth --preset NAME --weights random`.

Three lines, each with all else as the preset has it: how many latent frames are seen (windows that have filled), how
many viewers are live (in turns and in a batch), and the picture's size. For each point seconds from step to step
(median of --chunks, after the window has filled, with the spread) beside the floor of its matrix products and attention
at the machine's own ceilings, which are printed first. The last column is the cost against the line's first point, and
in brackets what the floor says of it. benchmarks.plot_growth draws the lines. JSON last.
"""

import argparse
import gc
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from benchmarks import machine
from benchmarks.throughput import floor_seconds, measure, measure_ceilings
from pipeline.device import choose_device
from pipeline.engine import Engine
from pipeline.load import Parts, load_parts
from pipeline.presets import Preset, find_preset
from pipeline.vae_precision import VAE_PRECISIONS, at_vae_precision

SIZES = (0.5, 1.0, 1.5)
"""Of the picture's sides, against the preset's."""
WINDOWS = (1, 2, 4)
"""Against the preset's."""
LIVE = (1, 2, 3)


class Point(NamedTuple):
    """One engine to measure: the line it is on, where, and how it is run."""

    line: str
    at: str
    preset: Preset
    live: int = 1
    schedule: str = "turns"


def main(argv: list[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    device, preset = choose_device(options.device), find_preset(options.preset)
    ceilings = measure_ceilings(preset, device)
    print("ceilings here: " + ", ".join(f"{name} {value}" for name, value in ceilings.items()), flush=True)
    parts = load_parts(preset, options.weights, device)
    result = {"benchmark": "growth", **machine.facts(), "preset": preset.name, "ceilings": ceilings, "points": []}
    for point in points(preset, options.lines.split(",")):
        result["points"].append(found := attempt(point, parts, options, ceilings))
        print(found, flush=True)
        machine.keep(result, options.save)
    print(table(result["points"]))
    machine.finish(result, options.save)
    return 0


def points(preset: Preset, lines: list[str]) -> Iterator[Point]:
    window = preset.window or 21
    if "window" in lines:
        for factor in WINDOWS:
            yield Point("window", f"{factor * window} latent frames", replace(preset, window=factor * window))
    if "live" in lines:
        for live in LIVE:
            yield Point("live", f"{live} in turns", preset, live)
        for live in LIVE[1:]:
            yield Point("live", f"{live} in a batch", preset, live, "batch")
    if "size" in lines:
        for factor in SIZES:
            width, height = (_whole(side * factor, preset.scale * 2) for side in (preset.width, preset.height))
            yield Point("size", f"{width}x{height}", replace(preset, width=width, height=height))


def _whole(side: float, unit: int) -> int:
    """The nearest side that is whole tokens."""
    return max(1, round(side / unit)) * unit


def attempt(point: Point, parts: Parts, options: argparse.Namespace, ceilings: dict[str, float]) -> dict[str, Any]:
    """One point; what does not fit into the memory says so and ends nothing."""
    named = {"line": point.line, "at": point.at}
    try:
        return named | _measured(point, parts, options, ceilings)
    except torch.OutOfMemoryError as error:
        return named | {"failed": str(error).split(". ")[0][:160]}
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _measured(point: Point, parts: Parts, options: argparse.Namespace, ceilings: dict[str, float]) -> dict[str, Any]:
    vae = at_vae_precision(parts.vae, options.vae_precision, point.preset.latent_shape[2:])
    engine = Engine(
        point.preset,
        parts._replace(vae=vae),
        slots=point.live,
        device=choose_device(options.device),
        schedule=point.schedule,
    )
    run = measure(engine, point.live, options.chunks)
    floor = point.live * floor_seconds(engine, ceilings)
    names = ("seconds_a_chunk", "spread", "frames_a_second_each", "stages", "peak_gib")
    return {name: run[name] for name in names} | {"floor_seconds": round(floor, 4)}


def table(found: list[dict[str, Any]]) -> str:
    lines, first = [], {}
    for point in found:
        if "failed" in point:
            lines.append(f"{point['line']:7} {point['at']:20} {point['failed']}")
            continue
        base = first.setdefault(point["line"], point)
        cost, floor = (point[key] / base[key] for key in ("seconds_a_chunk", "floor_seconds"))
        seconds = f"{point['seconds_a_chunk']:8.4f} s  floor {point['floor_seconds']:8.4f} s"
        lines.append(f"{point['line']:7} {point['at']:20} {seconds}  {cost:5.2f} times ({floor:.2f})")
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--weights", help="a checkpoint, or random; default: those that come with the preset")
    parser.add_argument("--vae-precision", default="exact", choices=VAE_PRECISIONS)
    parser.add_argument("--lines", default="window,live,size", help="default: %(default)s")
    parser.add_argument("--chunks", type=int, default=5, help="steps to time (default: 5)")
    parser.add_argument("--device", default="auto")
    machine.add_output(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
