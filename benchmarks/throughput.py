"""Seconds a chunk, in the steady state, as the service's worker runs the engine: `python -m benchmarks.throughput`.

Prints the machine's own ceilings first, measured here (matrix product, attention, copy), then for each way to run the
preset (see --way) and each number of live sessions: seconds from step to step (median of --chunks
after the window has filled, with the spread), by stage, frames/s for each viewer, the share of the matrix and attention
ceilings, peak memory, and how often the host had to wait for the GPU within a step; on a CPU also what a pass takes
beside its own products and attention with nothing between them (benchmarks.floor; goal: 70%). Then one session from
admit: when its first frames are there, and all of --frames; and how far its latents and frames are from those of the
first way. Frames are taken by a thread of their own, as in the service. A table of all comes last but one, JSON last.
"""

import argparse
import gc
import itertools
import math
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks import machine
from benchmarks.floor import passes_against_floor, timed_passes
from kernels.attention import attention
from kernels.fp8 import fp8_missing, quantize
from kernels.fp8_attention import Fp8Attention, fp8_attention_missing, narrow
from kernels.linear import fp8_matmul
from pipeline.chunk import Ended, SessionSpec
from pipeline.device import choose_device
from pipeline.digest import render
from pipeline.engine import Engine, build
from pipeline.presets import Preset, find_preset
from pipeline.profiling import profile_engine

PROMPT = "a meadow by day"
REPEATS = 10
DIGEST_CHUNKS = 2
CLIP_FRAMES = 81


class Way(NamedTuple):
    """How a preset is run: options of pipeline.engine.build; `eager` is the transformer as it is without fuse."""

    precision: str = "bf16"
    eager: bool = False
    schedule: str = "auto"
    vae: str = "exact"
    overlap: str = "yes"
    attention: str = "auto"
    context: str = "exact"
    graphs: bool = False
    cache: str = "plain"

    def __str__(self) -> str:
        """Such as "bf16, turns", and what else is not as it comes."""
        words = {"vae": self.vae, "overlap": self.overlap, "attention": self.attention, "context": self.context}
        words["cache"] = self.cache
        more = [f"{name} {value}" for name, value in words.items() if value != self._field_defaults[name]]
        more += ["graphs"] * self.graphs
        return ", ".join([f"{self.precision}{' eager' if self.eager else ''}", self.schedule, *more])

    @classmethod
    def parse(cls, text: str) -> "Way":
        """Of words such as "precision=fp8 vae=rows overlap=no". Raises ValueError for another word."""
        given = dict(word.partition("=")[::2] for word in text.split())
        if unknown := set(given) - set(cls._fields):
            raise ValueError(f"no {', '.join(sorted(unknown))} in a way; there are {', '.join(cls._fields)}")
        flags = {
            name: value in ("yes", "") for name, value in given.items() if cls._field_defaults[name] in (True, False)
        }
        return cls(**{**given, **flags})


class Clip(NamedTuple):
    """One session from admit: seconds until it is open, until its first frames and until all; its latents and frames.

    The host's seconds: on a GPU a picture's encoding may go on after the session is open.
    """

    opened: float
    first: float
    whole: float
    latents: np.ndarray
    frames: np.ndarray


def main(argv: list[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    device = choose_device(options.device)
    ceilings = measure_ceilings(find_preset(options.preset), device)
    print("ceilings here: " + ", ".join(f"{name} {value}" for name, value in ceilings.items()), flush=True)
    result = {"benchmark": "throughput", **machine.facts(), "preset": options.preset, "ceilings": ceilings, "runs": []}
    runs, reference = result["runs"], None
    for way in ways(options):
        try:
            found, clip = measure_way(way, options, ceilings, reference)
            runs += found
            reference = reference or clip
        except Exception as error:  # out of memory, or what this GPU or its compiler cannot do: the others go on
            runs.append({"way": str(way), "failed": f"{type(error).__name__}: {str(error).split('. ')[0][:200]}"})
            print(f"{way}: {runs[-1]['failed']}", flush=True)
        machine.keep(result, options.save)
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    print(table(runs))
    machine.finish(result, options.save)
    return 0


def ways(options: argparse.Namespace) -> list[Way]:
    """What was asked for, the eager one first: the others are compared with it."""
    if options.way:
        return [Way.parse(text) for text in options.way]
    precisions = [("bf16", True)] if options.eager else []
    precisions += [(precision, False) for precision in options.precision.split(",")]
    vaes, schedules = options.vae_precision.split(","), options.schedule.split(",")
    return [Way(*pair, schedule, vae) for pair, vae, schedule in itertools.product(precisions, vaes, schedules)]


def measure_way(
    way: Way, options: argparse.Namespace, ceilings: dict[str, float], reference: Clip | None
) -> tuple[list[dict[str, Any]], Clip]:
    """One engine: the steady state of each number of sessions, then one session from admit."""
    counts, begun = [int(count) for count in options.slots.split(",")], time.perf_counter()
    engine = build(
        options.preset, options.weights, slots=max(counts), device=options.device, schedule=way.schedule,
        context=options.context, precision=way.precision, fuse=False if way.eager else None, vae_precision=way.vae,
        overlap=way.overlap, attention=way.attention, context_pass=way.context,
        graphs=way.graphs, cache=way.cache,
    )  # fmt: skip
    if way.schedule == "auto":
        engine.prewarm()
    runs = []
    for count in counts:
        run = {"way": str(way._replace(schedule=engine.schedule)), "live": count}
        run |= measure(engine, count, options.chunks)
        run["share_of_ceilings"] = round(count * floor_seconds(engine, ceilings) / run["seconds_a_chunk"], 3)
        runs.append(run)
        print(run, flush=True)
        if options.digest:
            name = "-".join((options.digest, *str(way).replace(",", "").split(), str(count)))
            write_digest(engine, count, name)
    clip = make_clip(engine, options.frames)
    facts = {"first_frame_seconds": round(clip.first, 4), "clip_seconds": round(clip.whole, 3)}
    facts |= {"open_seconds": round(clip.opened, 4)}
    if engine.attention.times:
        facts["attention"] = engine.attention.report()
    facts |= closeness(clip, reference) if reference is not None else {}
    runs[0] |= facts
    print(f"{facts}, {time.perf_counter() - begun:.0f} s for this way", flush=True)
    return runs, clip


def make_clip(engine: Engine, frames: int) -> Clip:
    """A session of at least `frames` frames, alone; seconds count from before it is admitted."""
    begun, arrived = time.perf_counter(), []

    def take(pending) -> np.ndarray:
        made = []
        for number in range(len(pending.parts)):
            made.append(pending.part(number))
            assert not isinstance(made[-1], Ended), made[-1]
            arrived.append(time.perf_counter() - begun)
        return np.concatenate(made)

    engine.open(SessionSpec("clip", PROMPT, 7, engine.warm_image()))
    opened = time.perf_counter() - begun
    try:
        with ThreadPoolExecutor(1) as taker:
            taken = []
            for _ in range(engine.preset.chunk_of(frames - 1) + 1):
                (pending,) = engine.begin(["clip"])
                taken.append(taker.submit(take, pending))
                engine.wait()
            pictures = np.concatenate([each.result() for each in taken])
        latents = engine.snapshot("clip").latents
    finally:
        engine.close("clip")
    return Clip(opened, arrived[0], arrived[-1], latents, pictures)


def closeness(clip: Clip, reference: Clip) -> dict[str, float]:
    """How far a clip is from another of the same session, in its first chunk and in all of it.

    Relative error of the latents (norm of the difference over norm), PSNR of the frames in dB.
    """
    first = len(clip.frames) // len(clip.latents)
    return {
        "latent_error_first": _relative(clip.latents[:1], reference.latents[:1]),
        "latent_error": _relative(clip.latents, reference.latents),
        "psnr_first": _psnr(clip.frames[:first], reference.frames[:first]),
        "psnr": _psnr(clip.frames, reference.frames),
    }


def closeness_of(found: tuple[np.ndarray, np.ndarray], expected: tuple[np.ndarray, np.ndarray]) -> tuple[float, float]:
    """Of latents and frames: relative error and decibels, as in closeness()."""
    return _relative(found[0], expected[0]), _psnr(found[1], expected[1])


def _relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(f"{np.linalg.norm(found - expected) / np.linalg.norm(expected):.3g}")


def _psnr(found: np.ndarray, expected: np.ndarray) -> float:
    error = np.mean((found.astype(np.float32) - expected.astype(np.float32)) ** 2, dtype=np.float64)
    return round(10 * math.log10(255**2 / max(float(error), 1e-4)), 1)


COLUMNS = {
    "way": "way", "live": "live", "seconds_a_chunk": "s/chunk", "frames_a_second_each": "fps each", "stages": "denoise",
    "share_of_ceilings": "share", "peak_gib": "GiB", "first_frame_seconds": "first s", "clip_seconds": "clip s",
    "latent_error_first": "latents 1", "latent_error": "latents", "psnr_first": "dB 1", "psnr": "dB",
}  # fmt: skip


def table(runs: list[dict[str, Any]]) -> str:
    """The runs in lines; "latents" is the error against the first way, "1" that of the first chunk alone."""
    rows = [list(COLUMNS.values())]
    for run in runs:
        shown = {**run, "stages": run.get("stages", {}).get("denoise")}
        rows.append([str(shown.get(key) if shown.get(key) is not None else "-") for key in COLUMNS])
        if "failed" in run:
            rows[-1][2] = run["failed"]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def measure(engine: Engine, count: int, chunks: int) -> dict[str, Any]:
    """`chunks` steps of `count` sessions after their windows have filled."""
    names = [f"throughput-{number}" for number in range(count)]
    for seed, name in enumerate(names):
        engine.open(SessionSpec(name, PROMPT, seed, engine.warm_image()))
    try:
        with ThreadPoolExecutor(1) as taker:
            with engine.attention.learning():
                for _ in range(engine.window_chunks + 1):
                    engine.step(names)
            _steps(engine, names, 1, taker)
            if engine.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            with CountedSyncs(engine.device) as told, timed_passes(engine) as timed:
                seconds, stages = _steps(engine, names, chunks, taker)
            syncs = [
                each for each in told if "synchroniz" in str(each.message) and "prototype" not in str(each.message)
            ]
    finally:
        for name in names:
            engine.close(name)
    median = statistics.median(seconds)
    passes = {} if engine.device.type == "cuda" else {"pass": passes_against_floor(engine, timed.passes, count)}
    return passes | {
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
        pending = list(engine.begin(names))
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


def write_digest(engine: Engine, count: int, name: str) -> None:
    """Where the time of a step goes, as text and JSON beside the results; the trace itself is too large to keep."""
    with tempfile.TemporaryDirectory() as folder:
        facts = profile_engine(engine, count, DIGEST_CHUNKS, Path(folder) / "trace.json")
    facts |= {"preset": engine.preset.name, "sessions": count, "schedule": engine.schedule, **machine.facts()}
    machine.keep(facts, name)
    (machine.RESULTS / f"{name}.txt").write_text(render(facts))


# The machine's own limits


def measure_ceilings(preset: Preset, device: torch.device) -> dict[str, float]:
    """Of the preset's own shapes, TFLOP/s: its FFN's first product, attention on a full window; TB/s of a copy.

    In FP8 as well where this machine has what that takes.
    """
    config, dtype = preset.transformer, torch.bfloat16 if device.type == "cuda" else torch.float32
    tokens = preset.token_grid[0] * preset.token_grid[1]
    queries, keys = tokens * preset.chunk, tokens * (preset.window or 21)
    x = torch.randn(queries, config.dim, device=device, dtype=dtype)
    weight = torch.randn(config.ffn_dim, config.dim, device=device, dtype=dtype)
    q, k, v = (
        torch.randn(1, n, config.heads, config.head_width, device=device, dtype=dtype) for n in (queries, keys, keys)
    )
    big = torch.empty(2**30 if device.type == "cuda" else 2**26, dtype=torch.uint8, device=device)
    product = median_seconds(lambda: torch.nn.functional.linear(x, weight), device)
    attend = median_seconds(lambda: attention(q, k, v), device)
    copy = median_seconds(big.clone, device)
    products, attends = 2e-12 * queries * config.dim * config.ffn_dim, 4e-12 * queries * keys * config.dim
    found = {
        "matrix_tflops": round(products / product, 5),
        "attention_tflops": round(attends / attend, 5),
        "copy_tb_s": round(2 * big.numel() / copy / 1e12, 4),
    }
    if fp8_missing(device) is None:
        rows, columns = quantize(x), quantize(weight)
        found["matrix_fp8_tflops"] = round(products / median_seconds(lambda: fp8_matmul(rows, columns), device), 1)
    if device.type == "cuda" and fp8_attention_missing(device) is None:
        q, k, v = (narrow(each[0]) for each in (q, k, v))
        attend_fp8 = Fp8Attention()
        seconds = median_seconds(lambda: attend_fp8(q, k, v, keys), device)
        found["attention_fp8_tflops"] = round(attends / seconds, 1)
    return found


def floor_seconds(engine: Engine, ceilings: dict[str, float]) -> float:
    """What one chunk of one session would take with nothing but its matrix products and attention, at the ceilings.

    Counted: the linears of every pass and of the camera once, self-attention on a full window, cross-attention on all
    text rows. Left out: prompts, embeddings of time, the VAE. What the engine does in FP8 has the ceilings of FP8.
    """
    preset, config = engine.preset, engine.preset.transformer
    tokens = preset.token_grid[0] * preset.token_grid[1] * preset.chunk
    window = preset.token_grid[0] * preset.token_grid[1] * engine.window_chunks * preset.chunk
    passes = engine.passes
    linears = passes * (6 * config.dim**2 + 2 * config.dim * config.ffn_dim)
    camera = 4 * config.dim**2 if config.camera_channels else 0
    products = 2 * tokens * config.layers * (linears + camera)
    attends, reads = (4 * tokens * config.layers * config.dim * passes * keys for keys in (window, config.text_rows))
    matrix = _ceiling(ceilings, "matrix", config.precision == "fp8")
    attention = _ceiling(ceilings, "attention", engine.attention_in_fp8)
    return (products / matrix + attends / attention + reads / ceilings["attention_tflops"]) / 1e12


def _ceiling(ceilings: dict[str, float], of: str, in_fp8: bool) -> float:
    plain = ceilings[f"{of}_tflops"]
    return ceilings.get(f"{of}_fp8_tflops", plain) if in_fp8 else plain


def median_seconds(work: Callable[[], object], device: torch.device) -> float:
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
    parser.add_argument("--schedule", default="auto", help="such as turns,batch; auto lets prewarm choose (default)")
    parser.add_argument("--precision", default="bf16", help="of the linears, such as bf16,fp8 (default: bf16)")
    parser.add_argument(
        "--vae-precision", default="exact", help="such as exact,bf16,fp16,rows for the Wan models (default: exact)"
    )
    parser.add_argument(
        "--way", action="append", metavar="WORDS",
        help="a way by itself, in place of all that the options make of precision, schedule and VAE: words such as "
        "'precision=fp8 schedule=turns vae=rows overlap=no attention=cudnn context=reuse graphs=yes cache=fp8'; may be "
        "repeated",
    )  # fmt: skip
    parser.add_argument("--eager", action="store_true", help="also the transformer that is neither fused nor compiled")
    parser.add_argument("--frames", type=int, default=CLIP_FRAMES, help="of the clip (default: 81)")
    parser.add_argument("--context", type=int, help="latent frames kept by a preset without a window")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--digest", metavar="NAME", help="also trace a few steps and keep what the trace says")
    machine.add_output(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
