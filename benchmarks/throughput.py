"""Seconds a chunk, in the steady state, as the service's worker runs the engine: `python -m benchmarks.throughput`.

Prints the machine's own ceilings first, measured here (matrix product, attention, copy), then for each number of live
sessions: seconds from step to step (median of --chunks after the window has filled, with the spread), by stage,
frames/s for each viewer, the share of the matrix and attention ceilings, peak memory, and how often the host had to
wait for the GPU within a step. Frames are taken by a thread of their own, as in the service.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from benchmarks import machine
from kernels.attention import attention
from pipeline.chunk import Ended, SessionSpec
from pipeline.digest import render
from pipeline.engine import Engine, build
from pipeline.presets import Preset
from pipeline.profiling import profile_engine

PROMPT = "a meadow by day"
REPEATS = 10
DIGEST_CHUNKS = 2


def main(argv: list[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    counts = [int(count) for count in options.slots.split(",")]
    engine = build(
        options.preset, options.weights, slots=max(counts), device=options.device, schedule=options.schedule,
        context=options.context,
    )  # fmt: skip
    ceilings = measure_ceilings(engine.preset, engine.device)
    print("ceilings here: " + ", ".join(f"{name} {value}" for name, value in ceilings.items()), flush=True)
    world = engine.prewarm()
    runs = {}
    for count in counts:
        runs[count] = run = measure(engine, count, options.chunks)
        run["share_of_ceilings"] = round(count * floor_seconds(engine, ceilings) / run["seconds_a_chunk"], 3)
        print(f"{count} live: {run}", flush=True)
        if options.digest:
            write_digest(engine, count, machine.RESULTS / f"{options.digest}-{count}")
    result = {"preset": options.preset, "schedule": world.schedule, "ceilings": ceilings, "live": runs}
    machine.finish({"benchmark": "throughput", **machine.facts(), **result}, options.save)
    return 0


def measure(engine: Engine, count: int, chunks: int) -> dict[str, Any]:
    """`chunks` steps of `count` sessions after their windows have filled."""
    names = [f"throughput-{number}" for number in range(count)]
    for seed, name in enumerate(names):
        engine.open(SessionSpec(name, PROMPT, seed, engine.warm_image()))
    try:
        with ThreadPoolExecutor(1) as taker:
            _steps(engine, names, engine.window_chunks + 1, taker)
            if engine.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            with CountedSyncs(engine.device) as told:
                seconds, stages = _steps(engine, names, chunks, taker)
            syncs = [
                each for each in told if "synchroniz" in str(each.message) and "prototype" not in str(each.message)
            ]
    finally:
        for name in names:
            engine.close(name)
    median = statistics.median(seconds)
    return {
        "seconds_a_chunk": round(median, 4),
        "spread": [round(min(seconds), 4), round(max(seconds), 4)],
        "frames_a_second_each": round(engine.preset.chunk_frames / median, 2),
        "stages": stages,
        "syncs_a_step": round(len(syncs) / chunks, 2),
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if engine.device.type == "cuda" else None,
    }


def _steps(
    engine: Engine, names: list[str], chunks: int, taker: ThreadPoolExecutor
) -> tuple[list[float], dict[str, float]]:
    """Seconds from step to step, and the medians of their stages."""
    seconds, taken, begun = [], [], time.perf_counter()
    for _ in range(chunks):
        pending = engine.begin(names)
        assert not any(isinstance(each, Ended) for each in pending), pending
        taken += [taker.submit(each.result) for each in pending]
        engine.wait()
        now = time.perf_counter()
        seconds.append(now - begun)
        begun = now
    times = [future.result().seconds for future in taken]
    return seconds, {stage: round(statistics.median(t[stage] for t in times), 4) for stage in times[0]}


class CountedSyncs(warnings.catch_warnings):
    """Torch's warnings of host waits, as a list; empty without a GPU."""

    def __init__(self, device: torch.device):
        super().__init__(record=True)
        self._cuda = device.type == "cuda"

    def __enter__(self) -> list:
        found = super().__enter__()
        warnings.simplefilter("always")
        if self._cuda:
            torch.cuda.set_sync_debug_mode("warn")
        return found

    def __exit__(self, *exception: object) -> None:
        if self._cuda:
            torch.cuda.set_sync_debug_mode("default")
        super().__exit__(*exception)


def write_digest(engine: Engine, count: int, name: Path) -> None:
    """Where the time of a step goes, as text and JSON; the trace itself is too large to keep."""
    with tempfile.TemporaryDirectory() as folder:
        facts = profile_engine(engine, count, DIGEST_CHUNKS, Path(folder) / "trace.json")
    facts |= {"preset": engine.preset.name, "sessions": count, "schedule": engine.schedule, **machine.facts()}
    name.with_suffix(".json").write_text(json.dumps(facts, indent=1) + "\n")
    name.with_suffix(".txt").write_text(render(facts))


# The machine's own limits


def measure_ceilings(preset: Preset, device: torch.device) -> dict[str, float]:
    """Of the preset's own shapes, TFLOP/s: its FFN's first product, attention on a full window; TB/s of a copy."""
    config, dtype = preset.transformer, torch.bfloat16 if device.type == "cuda" else torch.float32
    tokens = preset.token_grid[0] * preset.token_grid[1]
    queries, keys = tokens * preset.chunk, tokens * (preset.window or 21)
    x = torch.randn(queries, config.dim, device=device, dtype=dtype)
    weight = torch.randn(config.ffn_dim, config.dim, device=device, dtype=dtype)
    q, k, v = (
        torch.randn(1, n, config.heads, config.head_width, device=device, dtype=dtype) for n in (queries, keys, keys)
    )
    big = torch.empty(2**30 if device.type == "cuda" else 2**26, dtype=torch.uint8, device=device)
    product = _seconds(lambda: torch.nn.functional.linear(x, weight), device)
    attend = _seconds(lambda: attention(q, k, v), device)
    copy = _seconds(big.clone, device)
    return {
        "matrix_tflops": round(2 * queries * config.dim * config.ffn_dim / product / 1e12, 5),
        "attention_tflops": round(4 * queries * keys * config.dim / attend / 1e12, 5),
        "copy_tb_s": round(2 * big.numel() / copy / 1e12, 4),
    }


def floor_seconds(engine: Engine, ceilings: dict[str, float]) -> float:
    """What one chunk of one session would take with nothing but its matrix products and attention, at the ceilings.

    Counted: the linears of every pass and of the camera once, self-attention on a full window, cross-attention on all
    text rows. Left out: prompts, embeddings of time, the VAE.
    """
    preset, config = engine.preset, engine.preset.transformer
    tokens = preset.token_grid[0] * preset.token_grid[1] * preset.chunk
    window = preset.token_grid[0] * preset.token_grid[1] * engine.window_chunks * preset.chunk
    passes = len(preset.steps) + 1
    linears = passes * (6 * config.dim**2 + 2 * config.dim * config.ffn_dim)
    camera = 4 * config.dim**2 if config.camera_channels else 0
    products = 2 * tokens * config.layers * (linears + camera)
    attends = 4 * tokens * config.layers * config.dim * passes * (window + config.text_rows)
    return (products / ceilings["matrix_tflops"] + attends / ceilings["attention_tflops"]) / 1e12


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """The median of some runs, after a warm-up."""
    times = []
    for _ in range(REPEATS + 3):
        if device.type == "cuda":
            torch.cuda.synchronize()
        begun = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begun)
    return statistics.median(times[3:])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.throughput", description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--weights", help="a checkpoint, or random; default: those that come with the preset")
    parser.add_argument("--slots", default="1,2", help="numbers of live sessions, such as 1,2 (the default)")
    parser.add_argument("--chunks", type=int, default=10, help="steps to time (default: 10)")
    parser.add_argument("--schedule", default="auto")
    parser.add_argument("--context", type=int, help="latent frames kept by a preset without a window")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--digest", metavar="NAME", help="also trace a few steps and keep what the trace says")
    machine.add_output(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
