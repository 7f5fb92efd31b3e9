"""Is the tiny world worth walking through? `python -m benchmarks.tiny_world` measures it row by row.

Prints the goals first, then each row as it is known: obedience to keys, pictures against prompts and against the
renderer's at the same poses, long walks, returns to a pose, the VAE alone, streams begun with a picture, the size of
the weights. The judges are small networks trained on the renderer's pictures alone (benchmarks/tiny_probes.py), what
they reach on held-out ones stands beside; they are kept in --probes and made anew when the renderer changes. Every
model picture comes through the engine as the service runs it. Ctrl-C ends it with what was measured so far.

    python -m benchmarks.tiny_world [--weights DIR] [--rows sessions,returns] [--save NAME]
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import machine, tiny_long, tiny_pictures, tiny_returns, tiny_sessions
from benchmarks.tiny_probes import ProbePlan, find_probes
from benchmarks.tiny_rows import Bench
from benchmarks.tiny_truth import Truth, draw_quickly
from benchmarks.tiny_walks import PRESET, run
from pipeline.device import choose_device
from pipeline.engine import Engine
from pipeline.load import load_parts
from pipeline.tiny.load import FILES, WEIGHTS
from pipeline.tiny.trainee import Stop

ROWS = ("quality", "sessions", "returns", "images", "long")
GOALS = """limits:
  obeys         95% of turns and 90% of steps in the right direction within 2 chunks, 80% within 25% of their amount
  follows       90% each of place, hour, weather, and 8 frames after a change's first chunk
  stays well    10,000 frames: sharpness within 20%, colours within 1.5 times of two seeds' distance, never frozen
  remembers     22 dB after a minute away
  quality       VAE 30 dB
  picture first 90% of scenes
  weights       32 MB
"""


def main(argv: list[str] | None = None) -> int:
    """0, or 130 when it was stopped early."""
    options = _parser().parse_args(argv)
    device = choose_device(options.device)
    print(GOALS, end="", flush=True)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
    draw_quickly(device)
    truth = Truth(device, options.rays)
    plan = ProbePlan(pairs=options.probe_pairs, steps=options.probe_steps)
    try:
        probes = find_probes(Path(options.probes), truth, plan)
    except KeyboardInterrupt:
        print("stopped before the judges had learnt; there is nothing to keep", flush=True)
        return 130
    print(f"probes on held-out pictures: {_brief(probes.held_out)}", flush=True)
    begun = time.monotonic()
    with Stop("stopping; what was measured so far is kept") as stop:
        rows = measure(options, make_engine(options, device), Bench(probes, truth), stop)
    result = {
        "benchmark": "tiny_world",
        **machine.facts(),
        "device": device.type,
        "options": {name: value for name, value in vars(options).items() if name != "save"},
        "stopped": stop.asked,
        "seconds": round(time.monotonic() - begun, 1),
        "probes": probes.held_out,
        "rows": rows,
    }
    machine.finish(result, options.save)
    return 130 if stop.asked else 0


def make_engine(options: argparse.Namespace, device: torch.device) -> Engine:
    """Many slots as one batch on a GPU, two side by side on a CPU."""
    cuda = device.type == "cuda"
    parts = load_parts(PRESET, options.weights, device)
    slots = options.slots or (64 if cuda else 2)
    return Engine(PRESET, parts, slots=slots, device=device, schedule="batch" if cuda else "parallel")


def measure(options: argparse.Namespace, engine: Engine, bench: Bench, stop: Stop) -> dict[str, Any]:
    """The rows asked for, as far as they were reached."""
    rows: dict[str, Any] = {"weights": weights_mb(options.weights)}
    if options.live:
        rows["two_cores"] = _kept(options.live)
    for name in options.beside.split(",") if options.beside else ():
        rows |= _kept(name)["rows"]
    for name in options.rows.split(","):
        if stop.asked:
            break
        begun = time.monotonic()
        for row, found in PARTS[name](options, engine, bench, stop).items():
            rows[row] = found
            print(f"{row}: {_brief(found)}", flush=True)
        print(f"{name} took {time.monotonic() - begun:.0f} s", flush=True)
    return rows


def _kept(name: str) -> dict[str, Any]:
    return json.loads((machine.RESULTS / f"{name}.json").read_text())


def weights_mb(folder: str | None) -> dict[str, Any]:
    sizes = {name: (Path(folder or WEIGHTS) / name).stat().st_size for name in FILES}
    return {"mb": round(sum(sizes.values()) / 1e6, 2), "goal": "<= 32 MB"}


# The parts: walks, what the engine makes of them, rows


def _quality(options: argparse.Namespace, engine: Engine, bench: Bench, stop: Stop) -> dict[str, Any]:
    return {"picture_quality": tiny_returns.picture_quality(options.clips, bench, engine._vae)}


def _sessions(options: argparse.Namespace, engine: Engine, bench: Bench, stop: Stop) -> dict[str, Any]:
    records = run(engine, "sessions", tiny_sessions.plan_sessions(options.sessions, options.seconds), stop)
    records = [record for record in records if record.chunks >= tiny_sessions.EVERY]
    if not records:
        return {}
    return {
        "obeys": tiny_sessions.obeys(records, bench),
        "follows": tiny_sessions.follows(records, bench),
        "faithful": tiny_sessions.faithful(records, bench),
    }


def _returns(options: argparse.Namespace, engine: Engine, bench: Bench, stop: Stop) -> dict[str, Any]:
    records = run(engine, "returns", tiny_returns.plan_returns(options.returns, options.away), stop)
    done = any(record.chunks == len(record.walk.keys) for record in records)
    return {"remembers": tiny_returns.remembers(records, bench, engine._vae)} if done else {}


def _images(options: argparse.Namespace, engine: Engine, bench: Bench, stop: Stop) -> dict[str, Any]:
    records = run(engine, "pictures first", tiny_pictures.plan_images(options.images, bench), stop)
    found = {} if stop.asked else {"first_picture": tiny_pictures.continues(records, bench)}
    records = [] if stop.asked else run(engine, "photos first", tiny_pictures.plan_photos(options.photos), stop)
    return found | ({"first_photo": tiny_pictures.takes_photos(records)} if records else {})


def _long(options: argparse.Namespace, engine: Engine, bench: Bench, stop: Stop) -> dict[str, Any]:
    records = run(engine, "long walks", tiny_long.plan_long(options.long_seeds, options.long_frames), stop)
    return {"stays_well": tiny_long.stays_well(records, bench)} if records else {}


PARTS: dict[str, Callable[..., dict[str, Any]]] = dict(
    zip(ROWS, (_quality, _sessions, _returns, _images, _long), strict=True)
)
"""In the order in which Ctrl-C loses least."""


def _brief(found: dict[str, Any]) -> str:
    """A row without what is only to be plotted."""
    hidden = ("series", "by_class", "goal")
    return str({name: value for name, value in found.items() if name not in hidden})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tiny_world", description=__doc__.splitlines()[0])
    parser.add_argument("--weights", metavar="DIR", help="what `train tiny` wrote; default: the shipped ones")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--slots", type=int, help="sessions at a time; default: 64 on a GPU, 2 on a CPU")
    parser.add_argument("--rows", type=_rows, default=",".join(ROWS), help=f"of {','.join(ROWS)} (default: all)")
    parser.add_argument("--sessions", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=20, help="of each session, 4 at least (default: 20)")
    parser.add_argument("--long-seeds", type=int, default=20)
    parser.add_argument("--long-frames", type=int, default=10_000)
    parser.add_argument("--returns", type=int, default=48, help="walks that come back (default: 48)")
    parser.add_argument("--away", type=float, default=60, help="seconds until they are back, 12 at least (default: 60)")
    parser.add_argument("--images", type=int, default=64, help="streams begun with a renderer's picture (default: 64)")
    parser.add_argument("--photos", type=int, default=18, help="streams begun with another picture (default: 18)")
    parser.add_argument("--clips", type=int, default=64, help="held-out clips for the VAE (default: 64)")
    parser.add_argument("--live", metavar="NAME", help="also take over what benchmarks.live kept under this name")
    parser.add_argument(
        "--beside",
        metavar="NAME,...",
        help="also take over rows that this benchmark kept under these names, from other GPUs say",
    )
    parser.add_argument("--rays", type=int, choices=(1, 2), default=2, help="a pixel and axis of the renderer's")
    parser.add_argument("--probes", metavar="DIR", default="runs/probes", help="where they are kept")
    parser.add_argument("--probe-pairs", type=int, default=ProbePlan.pairs)
    parser.add_argument("--probe-steps", type=int, default=ProbePlan.steps)
    machine.add_output(parser)
    return parser


def _rows(text: str) -> str:
    unknown = sorted(set(text.split(",")) - set(ROWS))
    if unknown:
        raise argparse.ArgumentTypeError(f"no row {', '.join(unknown)}; there are {','.join(ROWS)}")
    return text


if __name__ == "__main__":
    sys.exit(main())
