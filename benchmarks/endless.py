"""Is the five thousandth chunk as quick as the twentieth, in the same memory? `python -m benchmarks.endless`.

Prints first what the cache may hold, then at some chunks seconds a chunk (median of the 50 up to there, at most half of
all, with the quartiles and the quickest), how many times that of chunk 20 it is, processor time a chunk, to which
others on the machine add least, and the memory in use: the process's resident memory and, on a GPU, what torch has
allocated and reserved. The goal is 1.00 +- 0.02 times from chunk 20 to chunk 300.
Without --preset the model is a small one with random weights, a window and a sink, so that 5,000 chunks take minutes on
a CPU; its sink begins to follow the stream at latent frame 1024, chunk 1024. Last it says what that following costs:
one turn of the whole sink, as it comes once a chunk.
"""

import argparse
import statistics
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

import torch

from benchmarks import machine
from pipeline.chunk import Ended, SessionSpec
from pipeline.context import cache_bytes
from pipeline.device import choose_device
from pipeline.engine import Engine, build
from pipeline.kv_cache import KVCache
from pipeline.load import Parts
from pipeline.presets import Preset
from pipeline.sampler import steps_from_timesteps
from pipeline.stored import Stored
from pipeline.text_encoder import PromptCache
from pipeline.tiny.load import make_tiny
from pipeline.transformer import Transformer, TransformerConfig
from pipeline.vae_precision import VAE_PRECISIONS

MARKS = (20, 100, 300, 1000, 1100, 2000, 3000, 4000, 5000)
"""Chunks at which is measured; the small model's sink begins to turn between 1000 and 1100."""
FIRST, COMPARED, TOLERANCE = 20, 300, 0.02
MEASURED = 50
TURNS = 30
SMALL = Preset(
    name="small",
    summary="for this benchmark",
    transformer=TransformerConfig(
        dim=96,
        ffn_dim=192,
        heads=4,
        layers=2,
        in_channels=32,
        out_channels=32,
        text_dim=128,
        text_rows=4,
        camera_channels=384,
    ),
    steps=steps_from_timesteps((1000,), shift=1.0),
    chunk=1,
    window=8,
    sink=2,
    control="cam",
    image="none",
    vae="tiny",
    text="tiny",
    height=32,
    width=64,
    scale=16,
    first_frames=4,
)


def main(argv: list[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    engine = _engine(options)
    cache, preset = engine._cache, engine.preset
    held = cache_bytes(preset, cache.window_frames, 1, Stored(cache.k.dtype))
    print(f"limit: the cache holds {cache.window_frames} latent frames, {held / 1e6:.3g} MB, and no more", flush=True)
    picture = Path(options.image).read_bytes() if options.image else engine.warm_image()
    engine.open(SessionSpec("endless", "a meadow by day", 1, picture))
    points = measure(engine, options.chunks)
    ratio = next((point["times_chunk_20"] for point in points if point["chunk"] == COMPARED), None)
    if ratio is not None:
        within = "within" if abs(ratio - 1) <= TOLERANCE else "NOT within"
        print(f"chunk {COMPARED} against chunk {FIRST}: {ratio:.3f} times, {within} 1.00 +- {TOLERANCE}", flush=True)
    turn = turn_seconds(cache, engine)
    print(f"one turn of the sink in all layers: {1000 * turn:.2f} ms", flush=True)
    machine.finish(
        {
            "benchmark": "endless",
            **machine.facts(),
            "preset": preset.name,
            "chunk_latent_frames": preset.chunk,
            "window_latent_frames": cache.window_frames,
            "sink_latent_frames": cache.sink_frames,
            "cache_mb": round(held / 1e6, 3),
            "points": points,
            "chunk_300_against_20": ratio,
            "turn_ms": round(1000 * turn, 3),
        },
        options.save,
    )
    return 0


def _engine(options: argparse.Namespace) -> Engine:
    if options.preset is not None:
        named = {"device": options.device, "context": options.context, "vae_precision": options.vae_precision}
        return build(options.preset, options.weights, slots=1, schedule="turns", **named)
    device = choose_device(options.device)
    torch.manual_seed(0)
    world = make_tiny()
    model, vae = (part.to(device).eval().requires_grad_(False) for part in (Transformer(SMALL.transformer), world.vae))
    return Engine(SMALL, Parts(model, vae, PromptCache(world.text)), slots=1, device=device, schedule="turns")


def measure(engine: Engine, chunks: int) -> list[dict[str, Any]]:
    """Time and memory at each of MARKS up to `chunks`, and at `chunks`."""
    marks = sorted({mark for mark in MARKS if mark < chunks} | {chunks})
    recent: deque[float] = deque(maxlen=MEASURED)
    worked: deque[float] = deque([time.process_time()], maxlen=MEASURED + 1)
    points = []
    for number in range(1, chunks + 1):
        begun = time.perf_counter()
        (chunk,) = engine.step()
        recent.append(time.perf_counter() - begun)
        worked.append(time.process_time())
        if isinstance(chunk, Ended):
            raise SystemExit(chunk.reason)
        if number in marks:
            count = min(len(recent), max(1, number // 2))  # of the first chunks some are quick, their windows fill
            points.append(point(number, chunk.first_frame + len(chunk.frames), list(recent)[-count:]))
            points[-1]["processor_seconds_a_chunk"] = round((worked[-1] - worked[-1 - count]) / count, 5)
            first = points[0]["seconds_a_chunk"] if points[0]["chunk"] == FIRST else None
            points[-1]["times_chunk_20"] = first and round(points[-1]["seconds_a_chunk"] / first, 4)
            print(points[-1], flush=True)
    return points


def point(chunk: int, frames: int, seconds: list[float]) -> dict[str, Any]:
    first, median, third = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else [*seconds] * 3
    found = {
        "chunk": chunk,
        "video_frames": frames,
        "seconds_a_chunk": round(median, 5),
        "quartiles": [round(first, 5), round(third, 5)],
        "quickest": round(min(seconds), 5),
        "rss_mb": round(resident_bytes() / 1e6, 1),
    }
    if torch.cuda.is_available():
        allocated, reserved = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
        found |= {"gpu_allocated_mb": round(allocated / 1e6, 1), "gpu_reserved_mb": round(reserved / 1e6, 1)}
    return found


def resident_bytes() -> int:
    """The process's resident memory, as Linux has it."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


@torch.inference_mode()
def turn_seconds(cache: KVCache, engine: Engine) -> float:
    """What the sink's following adds to a chunk: the median of some turns through all layers."""
    cuda = cache.k.is_cuda
    times = []
    for number in range(1, TURNS + 1):
        if cuda:
            torch.cuda.synchronize()
        begun = time.perf_counter()
        turn = cache._turn(cache._follow_from + number)
        for layer in range(len(cache.k)):
            cache.turn_sink(layer, 0, turn)
        if cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begun)
    return statistics.median(times[3:])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.endless", description=__doc__.splitlines()[0])
    parser.add_argument("--chunks", type=int, default=5000, help="default: 5000")
    parser.add_argument("--preset", help="default: a small model with random weights")
    parser.add_argument("--weights", help="a checkpoint, or random; default: those that come with the preset")
    parser.add_argument("--image", metavar="FILE", help="a picture to begin with (default: a grey one, if needed)")
    parser.add_argument("--context", type=int, help="latent frames kept by a preset without a window")
    parser.add_argument("--vae-precision", default="exact", choices=VAE_PRECISIONS, help="for --preset")
    parser.add_argument("--device", default="auto")
    machine.add_output(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
