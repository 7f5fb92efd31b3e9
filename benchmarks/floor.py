"""How near the transformer's passes come to their matrix products and attention alone: part of benchmarks.throughput.

The floor of a pass is what its linears take one after another with the model's own weights on rows of its own shape,
and its attention on a full window of its own cache: the very kernels, shapes and memory of the model, and nothing
between them. It is measured where the pass runs: on the same number of threads, and where slots run on cores of their
own, on all of them at once.

B rows in a pass, L tokens in a chunk, C model width.
"""

import contextlib
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from kernels.attention import attention
from kernels.linear import Fp8Linear
from pipeline.engine import Engine
from pipeline.kv_cache import Span

REPEATS = 7


class Timed:
    """Runs a transformer on a CPU, where a pass ends when it returns, and notes of each pass its rows and seconds."""

    def __init__(self, run: Callable[..., Tensor]):
        self._run, self._lock = run, threading.Lock()
        self.passes: list[tuple[int, float]] = []

    def __call__(self, latent: Tensor, *rest: Any) -> Tensor:
        begun = time.perf_counter()
        result = self._run(latent, *rest)
        with self._lock:
            self.passes.append((len(latent), time.perf_counter() - begun))
        return result


@contextlib.contextmanager
def timed_passes(engine: Engine) -> Iterator[Timed]:
    """All passes of the engine within it."""
    before, engine._run = engine._run, Timed(engine._run)
    try:
        yield engine._run
    finally:
        engine._run = before


def passes_against_floor(engine: Engine, passes: list[tuple[int, float]], live: int) -> dict[str, Any]:
    """Of the commonest kind of pass among those noted: milliseconds (median), its floor and the share of it.

    `live` sessions are what was measured; `matrix_gflops` is the rate of the products at the model's shapes.
    """
    rows = statistics.mode(rows for rows, _ in passes)
    seconds = statistics.median(each for count, each in passes if count == rows)
    products, attends = floor(engine, rows, live)
    operations = rows * _tokens(engine) * sum(2 * each.in_features * each.out_features for each in _linears(engine))
    return {
        "rows": rows,
        "pass_ms": round(1000 * seconds, 2),
        "products_ms": round(1000 * products, 2),
        "attention_ms": round(1000 * attends, 2),
        "matrix_gflops": round(operations / products / 1e9, 1),
        "share_of_floor": round((products + attends) / seconds, 3),
    }


def floor(engine: Engine, rows: int, live: int) -> tuple[float, float]:
    """Seconds of a pass's products and of its attention, each by itself."""
    if engine.schedule != "parallel":
        return _floor(engine, rows)
    with engine._cores.kept_to():  # as many at once as are live
        return max(engine._cores.each(lambda _: _floor(engine, rows), range(live)))


@torch.inference_mode()
def _floor(engine: Engine, rows: int) -> tuple[float, float]:
    config, dtype = engine.preset.transformer, engine._model.dtype
    draw = {"dtype": dtype, "device": engine.device}
    inputs = {width: torch.randn(rows, _tokens(engine), width, **draw) for width in (config.dim, config.ffn_dim)}
    layers = _linears(engine)
    heads = config.heads, config.head_width
    q = torch.randn(rows, _tokens(engine), *heads, **draw)
    text = torch.randn(rows, config.text_rows, *heads, **draw)

    def products() -> None:
        for layer in layers:
            layer(inputs[layer.in_features])

    def attend() -> None:
        for layer in range(config.layers):
            for row in range(rows):
                engine._cache.attend(layer, [0], [(Span(0, engine._cache.k.shape[2]),)], q[row : row + 1])
            attention(q, text, text, engine.attention)

    return _median(products), _median(attend)


def _linears(engine: Engine) -> list[nn.Module]:
    """Those of every pass, in their order: q, k, v, o of both attentions and the FFN's; k and v of a prompt are its."""
    found = []
    for block in engine._model.blocks:
        own, text = block.self_attn, block.cross_attn
        found += [own.q, own.k, own.v, own.o, text.q, text.o, block.ffn[0], block.ffn[2]]
    assert all(isinstance(each, nn.Linear | Fp8Linear) for each in found)
    return found


def _tokens(engine: Engine) -> int:
    rows, columns = engine.preset.token_grid
    return rows * columns * engine.preset.chunk


def _median(run: Callable[[], None]) -> float:
    """The median of some runs after one for warmth."""
    times = []
    for _ in range(REPEATS + 1):
        begun = time.perf_counter()
        run()
        times.append(time.perf_counter() - begun)
    return statistics.median(times[1:])
