"""Every attention kernel by length, at a preset's true shapes: `python -m benchmarks.attention --preset NAME`.

Prints the rate of a large matrix product first, which no kernel passes. Then for a chunk's queries on 1, 2, 4, ...
chunks of keys up to the window, and on the text's rows: milliseconds and TFLOP/s of each kernel that can run (median of
some runs from a cold cache, on random data), the error of its result against float32, and which one is taken. "fp8" is
attention in FP8 as the engine runs it, on keys and values that are in float8 already; it is taken by who asks for it.
"share" is that of the ceiling. JSON last.
"""

import argparse
import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks import machine
from benchmarks.regions import microseconds
from benchmarks.throughput import median_seconds
from kernels.attention import attention, available_backends
from kernels.fp8_attention import VALUES_SIZE, Fp8Attention, fp8_attention_missing, narrow, widen
from pipeline.device import choose_device
from pipeline.presets import Preset, find_preset

FEW_HEADS = 4
"""For the exact result, whose scores are large."""


@torch.inference_mode()
def main(argv: list[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    device, preset = choose_device(options.device), find_preset(options.preset)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    ceiling = product_tflops(preset, device, dtype)
    backends = available_backends()
    print(f"ceiling: a matrix product runs at {_short(ceiling)} TFLOP/s", flush=True)
    print("cannot run here: " + ("; ".join(f"{n}: {why}" for n, why in backends.items() if why) or "none"), flush=True)
    result = {"benchmark": "attention", **machine.facts(), "preset": preset.name, "product_tflops": _short(ceiling)}
    result["rows"] = []
    for queries, keys in lengths(preset):
        result["rows"].append(row := measure(preset, queries, keys, device, dtype))
        row["share"] = round(row["backends"][row["taken"]]["tflops"] / ceiling, 3)
        print(row, flush=True)
        machine.keep(result, options.save)
    machine.finish(result, options.save)
    return 0


def lengths(preset: Preset) -> Iterator[tuple[int, int]]:
    """Queries and keys: a chunk on one, two, four, ... chunks, on the window, and on the text."""
    chunk, chunks = preset.chunk * preset.token_grid[0] * preset.token_grid[1], 1
    window = (preset.window or 21) * preset.token_grid[0] * preset.token_grid[1]
    while chunks * chunk < window:
        yield chunk, chunks * chunk
        chunks *= 2
    yield chunk, window
    yield chunk, preset.transformer.text_rows


def measure(preset: Preset, queries: int, keys: int, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    heads, width = preset.transformer.heads, preset.transformer.head_width
    q, k, v = (torch.randn(1, n, heads, width, device=device, dtype=dtype) for n in (queries, keys, keys))
    few = [each[:, :, :FEW_HEADS].float() for each in (q, k, v)]
    expected = attention(*few, "sdpa")
    found = {
        name: _measured(functools.partial(attention, q, k, v, name), keys, expected)
        for name, missing in available_backends().items()
        if missing is None
    }
    best = min((name for name in found if "ms" in found[name]), key=lambda name: found[name]["ms"])
    if device.type == "cuda" and fp8_attention_missing(device) is None:
        found["fp8"] = _measured(_in_fp8(q, k, v), keys, expected)
    return {"queries": queries, "keys": keys, "taken": best, "backends": found}


def _in_fp8(q: Tensor, k: Tensor, v: Tensor) -> Callable[[], Tensor]:
    keys, values, attend = narrow(k[0]), narrow(v[0], VALUES_SIZE), Fp8Attention()
    return lambda: widen(attend(narrow(q[0]), keys, values, len(keys)), q.dtype, VALUES_SIZE)[None]


def _measured(run: Callable[[], Tensor], keys: int, expected: Tensor) -> dict[str, Any]:
    try:
        made = run()
        spent = microseconds(run, made.device) / 1e6
    except Exception as error:  # what a library or compiler cannot do is a finding too
        return {"failed": f"{type(error).__name__} {str(error)[:160]}"}
    work = 4 * keys * made.numel()
    error = float((made[:, :, :FEW_HEADS].float() - expected).norm() / expected.norm())
    return {"ms": round(1000 * spent, 4), "tflops": _short(work / spent / 1e12), "error": f"{error:.1e}"}


def _short(number: float) -> float:
    """Three digits, wherever they begin: a slow CPU's rates are not nothing."""
    return float(f"{number:.3g}")


def product_tflops(preset: Preset, device: torch.device, dtype: torch.dtype) -> float:
    """Of the preset's FFN's first product."""
    rows, config = preset.chunk * preset.token_grid[0] * preset.token_grid[1], preset.transformer
    x = torch.randn(rows, config.dim, device=device, dtype=dtype)
    weight = torch.randn(config.ffn_dim, config.dim, device=device, dtype=dtype)
    seconds = median_seconds(lambda: torch.nn.functional.linear(x, weight), device)
    return 2 * rows * config.dim * config.ffn_dim / seconds / 1e12


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.attention", description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--device", default="auto")
    machine.add_output(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
