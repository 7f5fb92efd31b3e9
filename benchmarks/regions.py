"""Every part of a transformer block by itself, at a preset's true sizes: `python -m benchmarks.regions --preset NAME`.

For the regions between the products: microseconds plain, compiled and, on a GPU where there is a kernel of our own, by
hand, which is then the engine's way; the terabytes a second that each moves (each input read once, each output written
once) beside the rate of a copy, and the error of each against float32. For products and attention: microseconds and
TFLOP/s of each way to do them. Medians of some runs after a warm-up, on random data. It says what is to be gained by a
better kernel before one is written.
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks import machine
from benchmarks.throughput import REPEATS, median_seconds
from kernels import fused
from kernels.attention import attention, available_backends
from kernels.compiled import compiled
from kernels.fp8 import Quantized, fp8_missing, quantize_rows
from kernels.linear import Fp8Linear, fp8_matmul, join
from kernels.rows import by_hand
from pipeline.device import choose_device
from pipeline.presets import Preset, find_preset

MODES = (None, "max-autotune-no-cudagraphs")


class Sizes(NamedTuple):
    """Of one pass: slots, tokens a slot, keys a slot sees, text rows, model and FFN width, heads."""

    slots: int
    tokens: int
    keys: int
    rows: int
    width: int
    inner: int
    heads: int


class Maker(NamedTuple):
    """Random tensors of one dtype on one device."""

    dtype: torch.dtype
    device: torch.device

    def __call__(self, *shape: int) -> Tensor:
        return torch.randn(*shape, device=self.device, dtype=self.dtype)

    def wide(self, *shape: int) -> Tensor:
        return torch.randn(*shape, device=self.device)


@torch.inference_mode()
def main(argv: list[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    device, preset = choose_device(options.device), find_preset(options.preset)
    sizes = sizes_of(preset, options.slots)
    make = Maker(torch.bfloat16 if device.type == "cuda" else torch.float32, device)
    big = torch.empty(2**30 if device.type == "cuda" else 2**24, dtype=torch.uint8, device=device)
    copy = 2 * big.numel() / median_seconds(big.clone, device) / 1e12
    del big
    print(f"{sizes}; a copy moves {copy:.3f} TB/s", flush=True)
    rows = [*regions(sizes, make, options.modes), *products(sizes, make), *attentions(sizes, make)]
    result = {"preset": preset.name, "sizes": sizes._asdict(), "copy_tb_s": round(copy, 3), "rows": rows}
    machine.finish({"benchmark": "regions", **machine.facts(), **result}, options.save)
    return 0


def sizes_of(preset: Preset, slots: int) -> Sizes:
    frame, config = preset.token_grid[0] * preset.token_grid[1], preset.transformer
    keys = frame * (preset.window or 21)
    return Sizes(
        slots, frame * preset.chunk, keys, config.text_rows, config.dim, config.ffn_dim, config.heads
    )  # fmt: skip


def inputs(sizes: Sizes, make: Maker) -> dict[str, tuple]:
    """Arguments of each region."""
    slots, tokens, width, half = sizes.slots, sizes.tokens, sizes.width, sizes.width // sizes.heads // 2

    def stream() -> Tensor:
        return make(slots, tokens, width)

    terms, weight, angle = make.wide(slots, 6, width), make.wide(width), make.wide(slots, tokens, half)
    q, k, _ = make(slots, tokens, 3 * width).chunk(3, dim=-1)
    return {
        "enter": (stream(), terms),
        "heads": (q, k, (weight, weight), (angle.cos(), angle.sin()), sizes.heads),
        "after_attention": (stream(), stream(), terms, (stream(), stream()), weight, weight),
        "query": (stream(), weight, sizes.heads),
        "after_text": (stream(), stream(), terms),
        "activate": (make(slots, tokens, sizes.inner),),
        "leave": (stream(), stream(), terms),
        "as_rows": (stream(),),
    }


def regions(sizes: Sizes, make: Maker, modes: tuple[str | None, ...]) -> Iterator[dict[str, Any]]:
    """Plain, compiled and by hand where there is a kernel, with rows left as they are and quantized."""
    given = inputs(sizes, make)
    for quantized in (False, True):
        plain = fused.quantizing(fused.PLAIN) if quantized else fused.PLAIN
        ways = {str(mode or "default"): compiled(quantized, mode=mode) for mode in modes}
        if make.device.type == "cuda":
            ways["by_hand"] = by_hand(plain, quantized)
        for name, arguments in given.items():
            if name in (("heads", "query", "leave") if quantized else ("as_rows",)):
                continue  # the same function once more, or none
            row = {"region": f"{name}{' to FP8' if quantized else ''}"}
            there = {way: getattr(each, name) for way, each in ways.items()}
            there = {way: run for way, run in there.items() if run is not getattr(plain, name)}
            row |= _timed(getattr(plain, name), there, arguments)
            print(row, flush=True)
            yield row


def _timed(plain: Callable, ways: dict[str, Callable], arguments: tuple) -> dict[str, Any]:
    device = next(_tensors(arguments)).device
    result = plain(*arguments)
    moved = sum(each.numel() * each.element_size() for each in (*_tensors(arguments), *_tensors(result)))
    exact = [each.float() for each in _values(plain(*_widened(arguments)))]
    row = {"plain_us": microseconds(lambda: plain(*arguments), device), "plain_error": _error(result, exact)}
    for way, run in ways.items():
        row[f"{way}_us"] = spent = microseconds(lambda run=run: run(*arguments), device)
        row[f"{way}_tb_s"] = round(moved / spent / 1e6, 3)
        row[f"{way}_error"] = _error(run(*arguments), exact)
    return row


def products(sizes: Sizes, make: Maker) -> Iterator[dict[str, Any]]:
    """q, k, v as three products and as one; the FFN's first with its GELU; in FP8 where the device has it."""
    rows, width, inner = sizes.slots * sizes.tokens, sizes.width, sizes.inner
    x, hidden = make(rows, width), make(rows, inner)
    three = [torch.nn.Linear(width, width, device=make.device, dtype=make.dtype) for _ in range(3)]
    up, down = (
        torch.nn.Linear(*pair, device=make.device, dtype=make.dtype) for pair in ((width, inner), (inner, width))
    )
    activate = compiled(False).activate
    ways: dict[str, tuple[float, Callable]] = {
        "q, k, v apart": (3 * width * width, lambda: [each(x) for each in three]),
        "o": (width * width, lambda: three[0](x)),
        "FFN up": (width * inner, lambda: up(x)),
        "FFN up, then GELU": (width * inner, lambda: activate(up(x))),
        "FFN up with GELU": (
            width * inner, lambda: torch._addmm_activation(up.bias, x, up.weight.T, use_gelu=True),
        ),
        "FFN down": (width * inner, lambda: down(hidden)),
    }  # fmt: skip
    yield from _rates(ways, rows, make.device)
    joint = join(three)
    yield from _rates({"q, k, v as one": (3 * width * width, lambda: joint(x))}, rows, make.device)
    if fp8_missing(make.device) is None:
        yield from _rates(_fp8_products(x, hidden, [*three[:1], up, down]), rows, make.device)


def _fp8_products(x: Tensor, hidden: Tensor, layers: list[torch.nn.Linear]) -> dict[str, tuple[float, Callable]]:
    ways: dict[str, tuple[float, Callable]] = {}
    for name, layer, given in zip(("o", "FFN up", "FFN down"), layers, (x, x, hidden), strict=True):
        eight = Fp8Linear(layer.in_features, layer.out_features).to(x.device)
        eight.load_state_dict(layer.state_dict(), assign=True)
        rows, weight, bias = quantize_rows(given), Quantized(eight.weight, eight.weight_scale), eight.bias
        work = layer.in_features * layer.out_features
        ways[f"FP8 {name}"] = (work, lambda rows=rows, weight=weight, bias=bias: fp8_matmul(rows, weight, bias))
        ways[f"FP8 {name}, bias apart"] = (work, lambda rows=rows, w=weight, b=bias: fp8_matmul(rows, w) + b)
    return ways


def attentions(sizes: Sizes, make: Maker) -> Iterator[dict[str, Any]]:
    """Each backend on a full window, on the chunk alone and on the text's rows."""
    heads, head = sizes.heads, sizes.width // sizes.heads
    q = make(1, sizes.tokens, heads, head)
    for what, keys in (("window", sizes.keys), ("chunk", sizes.tokens), ("text", sizes.rows)):
        k, v = make(1, keys, heads, head), make(1, keys, heads, head)
        ways = {
            f"{what}, {name}": (2 * keys * sizes.width, lambda name=name, k=k, v=v: attention(q, k, v, name))
            for name, missing in available_backends().items()
            if missing is None
        }
        yield from _rates(ways, sizes.tokens, make.device)


def _rates(ways: dict[str, tuple[float, Callable]], rows: int, device: torch.device) -> Iterator[dict[str, Any]]:
    """`ways`: multiplications and additions a row, halved, and the work."""
    for name, (work, run) in ways.items():
        try:
            spent = microseconds(run, device)
        except (RuntimeError, ValueError) as error:  # what this torch cannot do is a finding too
            row = {"product": name, "failed": str(error).split("\n")[0][:120]}
        else:
            row = {"product": name, "us": spent, "tflops": round(2 * rows * work / spent / 1e6, 3)}
        print(row, flush=True)
        yield row


def microseconds(run: Callable[[], object], device: torch.device) -> float:
    """The median. On a GPU each run begins with a cold cache, behind a fill that hides how long its launch takes."""
    if device.type != "cuda":
        return round(median_seconds(run, device) * 1e6, 1)
    cold, times = torch.empty(2**29, dtype=torch.uint8, device=device), []
    for _ in range(REPEATS + 3):
        begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        cold.zero_()
        begun.record()
        run()
        ended.record()
        times.append((begun, ended))
    torch.cuda.synchronize()
    return round(statistics.median(begun.elapsed_time(ended) for begun, ended in times[3:]) * 1e3, 1)


def _error(result: Any, exact: list[Tensor]) -> float:
    pairs = zip(_values(result), exact, strict=True)
    return max(float(f"{float((one.float() - other).norm() / other.norm()):.2e}") for one, other in pairs)


def _values(held: Any) -> list[Tensor]:
    """The tensors of a region's result, quantized ones as what they stand for."""
    if isinstance(held, Quantized):
        return [held.values.float() * held.scale]
    return [held] if isinstance(held, Tensor) else [each for part in held for each in _values(part)]


def _tensors(held: Any) -> Iterator[Tensor]:
    if isinstance(held, Tensor):
        yield held
    elif isinstance(held, tuple):
        for each in held:
            yield from _tensors(each)


def _widened(held: Any) -> Any:
    if isinstance(held, tuple):
        return tuple(_widened(each) for each in held)
    return held.float() if isinstance(held, Tensor) else held


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.regions", description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--slots", type=int, default=1, help="rows of one pass (default: 1)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--default-mode", dest="modes", action="store_const", const=MODES[:1], default=MODES,
                        help="leave out torch.compile's autotuning")  # fmt: skip
    machine.add_output(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
