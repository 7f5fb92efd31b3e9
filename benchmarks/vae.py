"""Frames a second of the Wan decoder in a stream, and the seconds of a picture's encoding: `python -m benchmarks.vae`.

Prints the machine's own ceilings first, measured here: a large matrix product, products of the shapes of the decoder's
three large convolutions, a copy. Then the rates of those convolutions by way of computing them, and for each way of
decoding frames/s (median and spread of --chunks chunks of 3 latent frames, a latent frame at a time as the engine
decodes, and "at once"), its error against float32 (relative error, and PSNR on frames whose float32 standard deviation
is 0.5, as random weights are scaled to), and the memory of its state and workspace, without its own weights.
Weights are random at true size, so pictures are noise, the arithmetic is real. "exact", "bf16", "fp16" and "rows" are
the engine's --vae-precision; "exact" has convolutions in TF32, as torch has by default, and errors are against
"float32", which has not.
"""

import argparse
import copy
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import machine
from kernels.conv import Arena, Plane, Then, Tile, convolve, kernel
from pipeline.graphs import cuda_graphs
from pipeline.vae import WanVAE
from pipeline.vae_precision import at_vae_precision, channels_last
from pipeline.vae_rows import RowDecoder, Weights, prepare

LATENT_FRAMES = 3
SHAPES = {"full": (464, 832, 96), "third": (232, 416, 192), "second": (116, 208, 384)}
"""Height, width and channels of the resolutions where nearly all of the arithmetic is."""
TILES = {
    96: [
        Tile(128, 64, 32), Tile(128, 64, 32, warps=4), Tile(128, 64, 32, warps=4, stages=4),
        Tile(64, 64, 32, warps=4, stages=4), Tile(256, 64, 32),
    ],
    192: [
        Tile(128, 128, 64), Tile(128, 128, 64, stages=4), Tile(64, 128, 64, warps=4), Tile(128, 64, 32, warps=4),
    ],
    384: [
        Tile(128, 128, stages=4), Tile(128, 128, warps=4), Tile(128, 128, 64, stages=4), Tile(128, 256),
    ],
}  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    result: dict[str, Any] = {"benchmark": "vae", **machine.facts(), "size": [options.width, options.height]}
    on_gpu = device.type == "cuda"
    parts: dict[str, Callable[[], Any]] = {
        "ceilings": lambda: show("ceilings", ceilings(device)),
        "decode": lambda: decoding(options, device, rows=False),
        "encode": lambda: encoding(options, device),
        "convolutions": lambda: {name: show(name, rates(*SHAPES[name], device)) for name in SHAPES},
        "attention_ms": lambda: show("attention, ms", attention_times(device)),
        # Last, for a kernel that fails takes the process's GPU with it.
        "decode_rows": lambda: decoding(options, device, rows=True),
        "convolutions_rows": lambda: {name: show(name, row_rates(*SHAPES[name], device)) for name in SHAPES},
    }
    with torch.inference_mode():
        for name, part in parts.items():
            if on_gpu or name in ("decode", "encode"):
                result[name] = part()
                machine.keep(result, options.save)
    machine.finish(result, options.save)
    return 0


def show(name: str, values: dict[str, Any]) -> dict[str, Any]:
    print(f"{name}: " + ", ".join(f"{key} {value}" for key, value in values.items()), flush=True)
    return values


# The machine's own limits


def ceilings(device: torch.device) -> dict[str, Any]:
    """TFLOP/s of products in bfloat16, (rows x depth) x (depth x outputs); TB/s of a copy, read and written."""
    sizes = {"square": (8192, 8192, 8192)}
    sizes |= {name: (height * width, 27 * channels, channels) for name, (height, width, channels) in SHAPES.items()}
    found: dict[str, Any] = {}
    for name, (rows, depth, outputs) in sizes.items():
        a = torch.randn(rows, depth, device=device, dtype=torch.bfloat16)
        b = torch.randn(outputs, depth, device=device, dtype=torch.bfloat16)
        found[f"{name}_tflops"] = _tflops(2 * rows * depth * outputs, lambda a=a, b=b: F.linear(a, b))
        del a, b
    big = torch.empty(2**30, dtype=torch.uint8, device=device)
    found["cudnn"] = torch.backends.cudnn.version()
    found["copy_tb_s"] = round(2 * big.numel() / _seconds(big.clone) / 1e12, 3)
    return found


def rates(height: int, width: int, channels: int, device: torch.device) -> dict[str, Any]:
    """TFLOP/s of a 3 x 3 x 3 convolution of one and four frames behind two others, by way; what cannot run says why."""
    found = {}
    weight = torch.randn(channels, channels, 3, 3, 3, device=device) / (27 * channels) ** 0.5
    for count in (1, 4):
        work = 54 * channels**2 * height * width * count
        video = torch.randn(1, channels, count + 2, height, width, device=device).bfloat16()
        video = video.to(memory_format=torch.channels_last_3d)
        taps = weight.bfloat16().to(memory_format=torch.channels_last_3d)
        ways = {"cudnn 3d": lambda video=video, taps=taps: F.conv3d(video, taps, padding=(0, 1, 1))}
        pictures = torch.randn(count, 3 * channels, height, width, device=device).bfloat16()
        pictures = pictures.to(memory_format=torch.channels_last)
        flat = weight.bfloat16().movedim(2, 1).flatten(1, 2).to(memory_format=torch.channels_last)
        ways["cudnn 2d, 3C"] = lambda pictures=pictures, flat=flat: F.conv2d(pictures, flat, padding=1)
        for name, way in ways.items():
            with _settings("tuned"):
                found[f"{name}, {count}"] = _attempt(lambda way=way, work=work: _tflops(work, way))
        few, third = pictures[:, :channels].contiguous(memory_format=torch.channels_last), flat[:, :channels]
        third = third.contiguous(memory_format=torch.channels_last)
        with _settings("tuned"):
            found[f"cudnn 2d, C, {count}"] = _attempt(
                lambda few=few, third=third, work=work: _tflops(work // 3, lambda: F.conv2d(few, third, padding=1))
            )
    return found


def row_rates(height: int, width: int, channels: int, device: torch.device) -> dict[str, Any]:
    """The same for kernels.conv, a frame at a time, by tile."""
    weight = torch.randn(channels, channels, 3, 3, 3, device=device) / (27 * channels) ** 0.5
    plane = Plane(height, width)
    return {_named(tile): _attempt(lambda tile=tile: _row_rate(plane, weight, tile)) for tile in TILES[channels]}


def _named(tile: Tile) -> str:
    parts = f"{tile.outputs}+{tile.more}" if tile.more else f"{tile.outputs}"
    return f"rows {tile.rows}x{parts}, {tile.warps} warps, {tile.stages} stages"


def _row_rate(plane: Plane, weight: Tensor, tile: Tile) -> str:
    """Of kernels.conv with float32 residual, and norm where a block holds all outputs; with its relative error."""
    channels = weight.shape[0]
    like = weight.new_empty(0, dtype=torch.bfloat16)
    source, normed = Arena.zeros(plane, 4, channels, like), Arena.zeros(plane, 1, channels, like)
    x = Arena.zeros(plane, 2, channels, like.float())
    for picture in (*map(source.frame, range(4)), x.frame(1)):
        picture.copy_(torch.randn_like(picture))
    bias, scale = torch.randn_like(weight[:, 0, 0, 0, 0]), weight.new_full((channels,), channels**0.5)
    taps, whole = kernel(weight.bfloat16(), bias), tile.outputs + tile.more >= channels
    then = Then(kept=x, residual=x, normed=normed if whole else None, scale=scale)
    seen, residual, kept = (3, 0, 2), 1, 0
    table = torch.tensor([*seen, residual, kept, *[0] * whole], dtype=torch.int32, device=weight.device)
    run = partial(convolve, source, taps, then, 1, table, tile)
    run()
    video = torch.stack([source.frame(number) for number in seen]).float().movedim(-1, 0)
    made = F.conv3d(video[None], weight.bfloat16().float(), bias, padding=(0, 1, 1))[0, :, 0].movedim(0, -1)
    made += x.frame(residual)
    pairs = [(x.frame(kept), made)] + [(normed.frame(0), F.silu(F.normalize(made, dim=-1) * scale))] * whole
    error = max(((found.float() - right).norm() / right.norm()).item() for found, right in pairs)
    work = 54 * channels**2 * plane.height * plane.width
    return f"{_tflops(work, run)} (error {error:.1e})"


def attention_times(device: torch.device) -> dict[str, Any]:
    """Milliseconds for one latent frame of one head with 384 channels."""
    q, k, v = torch.randn(3, 1, 1, 58 * 104, 384, device=device, dtype=torch.bfloat16).unbind()

    def products() -> Tensor:
        scores = torch.bmm(q[0], k[0].mT, out_dtype=torch.float32)
        return (scores * 384**-0.5).softmax(-1).to(q.dtype) @ v[0]

    ways = {"sdpa": lambda: F.scaled_dot_product_attention(q, k, v), "products": products}
    return {name: _attempt(lambda way=way: round(1000 * _seconds(way), 3)) for name, way in ways.items()}


# Decoding


def decoding(options: argparse.Namespace, device: torch.device, rows: bool) -> dict[str, Any]:
    """Each way of decoding on the same latents, against plain float32."""
    torch.manual_seed(0)
    vae = WanVAE().to(device).eval().requires_grad_(False)
    shape = (vae.config.latent_channels, LATENT_FRAMES, options.height // 8, options.width // 8)
    chunks = [torch.randn(shape, device=device) for _ in range(2)]
    _scale_pictures(vae, chunks[0])
    with _settings("float32"):
        expected = _frames(vae.decoder(), chunks)
    found = {}
    for name, make in ways(vae, shape).items():
        if rows != name.startswith("rows"):
            continue
        if options.ways and name not in options.ways.split(","):
            continue
        with _settings(name):
            found[name] = show(name, _attempt_all(lambda make=make: measure(make, chunks, expected, options.chunks)))
    return found


def ways(vae: WanVAE, shape: tuple[int, ...]) -> dict[str, Callable[[], Any]]:
    """Makers of VAEs by name."""
    size = shape[2:]

    def graphed(weights: Weights) -> RowDecoder:
        decoder = RowDecoder(weights, *size)
        _decoded(decoder, torch.zeros(shape, device=vae.conv1.weight.device))
        decoder.record(cuda_graphs())
        return decoder

    found = {
        "exact": lambda: vae,
        "bf16 as it comes": lambda: _copy(vae, torch.bfloat16),
        "bf16": lambda: at_vae_precision(vae, "bf16", size),
        "fp16": lambda: at_vae_precision(vae, "fp16", size),
        "float32": lambda: vae,
        "exact channels-last tuned": lambda: channels_last(_copy(vae, torch.float32)),
    }
    if torch.cuda.is_available():
        found["rows"] = lambda: at_vae_precision(vae, "rows", size)
        found["rows-fp16"] = lambda: at_vae_precision(vae, "rows-fp16", size)
        found["rows graph"] = lambda: SimpleNamespace(decoder=partial(graphed, prepare(vae)))
    return found


def measure(make: Callable[[], Any], chunks: list[Tensor], expected: Tensor, count: int) -> dict[str, Any]:
    on_gpu = chunks[0].is_cuda
    if on_gpu:
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
    begun = time.perf_counter()
    vae = make()
    weights = torch.cuda.memory_allocated() - before if on_gpu else 0
    decoder = vae.decoder()
    frames = _frames(decoder, chunks)
    ready = time.perf_counter() - begun
    error = ((frames - expected).norm() / expected.norm()).item()
    psnr = 10 * math.log10(4 / max(1e-20, (frames.clamp(-1, 1) - expected.clamp(-1, 1)).square().mean().item()))
    del frames
    _decoded(decoder, chunks[1])
    if on_gpu:
        torch.cuda.empty_cache()
        kept = torch.cuda.memory_allocated() - before - weights
        torch.cuda.reset_peak_memory_stats()
    found = {"frames_s": rate(decoder, chunks[1].split(1, dim=1), count)}
    found |= {"error": f"{error:.2e}", "psnr_db": round(psnr, 1), "ready_s": round(ready, 1)}
    if on_gpu:
        peak = torch.cuda.max_memory_allocated() - before - weights
        found |= {f"{name}_gb": round(each / 1e9, 3) for name, each in (("own_weights", weights), ("held", kept))}
        found["peak_gb"] = round(peak / 1e9, 3)
    found["at_once_frames_s"] = rate(decoder, [chunks[1]], count)
    if isinstance(decoder, RowDecoder):
        found["steps_ms"] = step_times(decoder)
    return found


def rate(decoder: Any, parts: Sequence[Tensor], count: int) -> list[float]:
    """Frames/s of a chunk in these parts, `count` times: median, least, most."""
    on_gpu, rates = parts[0].is_cuda, []
    for number in range(count + 1):
        begun = _now(on_gpu)
        made = sum(decoder.decode(part).shape[1] for part in parts)
        rates += [made / (_now(on_gpu) - begun)] * (number > 0)  # the first of a shape finds its kernels
    return [round(value, 1) for value in (statistics.median(rates), min(rates), max(rates))]


def step_times(decoder: RowDecoder) -> dict[str, str]:
    """Milliseconds of a latent frame by kind of step, the largest first, and how many there are; each waited for."""
    program = decoder.program()
    program.plan()
    steps = program.launches()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(len(steps) + 1)]
    torch.cuda.synchronize()
    marks[0].record()
    for (_, launch), mark in zip(steps, marks[1:], strict=True):
        launch()
        mark.record()
    torch.cuda.synchronize()
    found: dict[str, list[float]] = {}
    for (name, _), begun, ended in zip(steps, marks, marks[1:], strict=False):
        found.setdefault(name, []).append(begun.elapsed_time(ended))
    ordered = sorted(found.items(), key=lambda item: -sum(item[1]))
    return {name: f"{sum(times):.2f} in {len(times)}" for name, times in ordered}


def _scale_pictures(vae: WanVAE, latent: Tensor) -> None:
    """Frames of random weights hardly leave zero; real ones fill their range, and PSNR counts against that."""
    last = vae._modules["decoder"].head[2]
    made = vae.decoder().decode_unclamped(latent)
    last.weight.mul_(0.5 / made.std())
    last.bias.zero_()


def _frames(decoder: Any, chunks: list[Tensor]) -> Tensor:
    """(3, N, H, W) float32, unclamped, of a new stream."""
    decoder.reset()
    parts = [part for chunk in chunks for part in chunk.split(1, dim=1)]
    return torch.cat([decoder.decode_unclamped(part).float() for part in parts], dim=1)


def _decoded(decoder: Any, chunk: Tensor) -> None:
    for part in chunk.split(1, dim=1):
        decoder.decode(part)


def _copy(vae: WanVAE, dtype: torch.dtype) -> WanVAE:
    return copy.deepcopy(vae).to(dtype)


# A picture at a session's start


def encoding(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    torch.manual_seed(0)
    vae = WanVAE().to(device).eval().requires_grad_(False)
    image = torch.rand(3, options.height, options.width, device=device) * 2 - 1
    with _settings("float32"):
        expected = vae.encoder().encode_still(image)
    size = (options.height // 8, options.width // 8)
    makers = {
        "exact": lambda: vae,
        "bf16": lambda: at_vae_precision(vae, "bf16", size),
        "fp16": lambda: at_vae_precision(vae, "fp16", size),
        "float32": lambda: vae,
        "exact channels-last": lambda: channels_last(_copy(vae, torch.float32)),
    }
    found = {}
    for name, make in makers.items():
        if options.ways and name not in options.ways.split(","):
            continue

        def still(make=make) -> dict[str, Any]:
            encoder = make().encoder()
            made = encoder.encode_still(image).float()
            error = ((made - expected).norm() / expected.norm()).item()
            if device.type == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
            seconds = _seconds(lambda: encoder.encode_still(image), 3)
            peak = torch.cuda.max_memory_allocated() - before if device.type == "cuda" else 0
            return {"seconds": round(seconds, 4), "error": f"{error:.2e}", "peak_gb": round(peak / 1e9, 2)}

        with _settings(name):
            found[name] = show(f"encode {name}", _attempt_all(still))
    return found


# Timing


class _Settings:
    """cuDNN's choice by timing, and its TF32, which torch allows by default, for what is inside."""

    def __init__(self, benchmark: bool, tf32: bool):
        self._benchmark, self._tf32 = benchmark, tf32

    def __enter__(self) -> None:
        cudnn = torch.backends.cudnn
        self._before = cudnn.benchmark, cudnn.allow_tf32
        cudnn.benchmark, cudnn.allow_tf32 = self._benchmark, self._tf32

    def __exit__(self, *exception: object) -> None:
        cudnn = torch.backends.cudnn
        cudnn.benchmark, cudnn.allow_tf32 = self._before


def _settings(name: str) -> _Settings:
    """As the name of a way says."""
    return _Settings("tuned" in name, name != "float32")


def _attempt(work: Callable[[], Any]) -> Any:
    try:
        return work()
    except Exception as error:  # a way that this GPU or this torch cannot go must not end the measurement
        torch.cuda.empty_cache()
        return f"no: {type(error).__name__} {str(error)[:160]}"


def _attempt_all(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    found = _attempt(work)
    return found if isinstance(found, dict) else {"failed": found}


def _tflops(operations: int, work: Callable[[], object]) -> float:
    return round(operations / _seconds(work) / 1e12, 1)


def _seconds(work: Callable[[], object], repeats: int = 10) -> float:
    """The median of `repeats`, after a warm-up."""
    on_gpu, times = torch.cuda.is_available(), []
    for _ in range(repeats + 2):
        begun = _now(on_gpu)
        work()
        times.append(_now(on_gpu) - begun)
    return statistics.median(times[2:])


def _now(on_gpu: bool) -> float:
    if on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.vae", description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=832)
    parser.add_argument("--height", type=int, default=464)
    parser.add_argument("--chunks", type=int, default=10, help="chunks to time (default: 10)")
    parser.add_argument("--ways", help="only these, by name, with commas; default: all")
    machine.add_output(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
