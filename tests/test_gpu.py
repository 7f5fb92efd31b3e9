"""What only a GPU can show: `python -m pytest -m gpu` on a machine with CUDA; elsewhere each says what it needs.

The models have true size and random weights: 1.3B, whose chunks take a fraction of a second.
"""

import math

import pytest
import torch

from kernels.fp8_attention import fp8_attention_missing
from pipeline.chunk import Control, SessionSpec
from pipeline.engine import Engine, build
from pipeline.graphs import WARM

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
WINDOWED = ("wan2.1-1.3b-longlive", "lingbot-world-v2-1.3b")
PRESETS = ("wan2.1-1.3b-longlive", "lingbot-world-v2-1.3b", "tiny")
BATCH_TOLERANCE = 0.05
LACKS = fp8_attention_missing(torch.device("cuda")) if torch.cuda.is_available() else "torch sees no CUDA device"
IN_FP8 = [
    pytest.param("lingbot-world-v2-1.3b", "fp8", marks=pytest.mark.skipif(bool(LACKS), reason=f"needs cuDNN: {LACKS}"))
]


def engine_of(preset: str, schedule: str, slots: int = 2, **options) -> Engine:
    torch.manual_seed(0)  # the same random weights each time
    return build(preset, "random", slots=slots, device="cuda", schedule=schedule, **options)


def spec(engine: Engine, name: str, prompt: str, seed: int) -> SessionSpec:
    return SessionSpec(name, prompt, seed, engine.warm_image())


@pytest.mark.parametrize(
    ("preset", "attention", "graphs"),
    [
        *((name, "auto", False) for name in PRESETS),
        *((name, "auto", True) for name in WINDOWED),
        *(pytest.param(*each.values, True, marks=each.marks) for each in IN_FP8),
    ],
)
@pytest.mark.parametrize("schedule", ["turns", "batch"])
def test_a_warm_step_never_waits_for_the_gpu(preset, attention, schedule, graphs):
    engine = engine_of(preset, schedule, attention=attention, graphs=graphs)
    for seed, name in enumerate("ab"):
        engine.open(spec(engine, name, "a meadow", seed))
    warm = engine.window_chunks + 1 + (math.ceil(WARM / engine.passes) + 1 if graphs else 0)
    for _ in range(warm):
        engine.step()
    engine.control("a", Control(1, frozenset("wl")))
    torch.cuda.set_sync_debug_mode("error")
    try:
        pending = engine.begin()
        pending += engine.begin()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert [each.result().index for each in pending] == [warm] * 2 + [warm + 1] * 2


def latents(preset: str, schedule: str, stranger: bool, chunks: int = 5, **options) -> torch.Tensor:
    """The watched session's clean latents; the stranger joins two chunks later and steers elsewhere."""
    engine = engine_of(preset, schedule, **options)
    engine.open(spec(engine, "watched", "a meadow", 1))
    for chunk in range(chunks):
        if stranger and chunk == 2:
            engine.open(spec(engine, "stranger", "a city of glass", 99))
        engine.control("watched", Control(chunk, frozenset("w" if chunk % 2 else "l")))
        engine.control("stranger", Control(chunk, frozenset("sd")))
        engine.step()
    return torch.from_numpy(engine.snapshot("watched").latents)


@pytest.mark.parametrize(("preset", "attention"), [*((name, "auto") for name in PRESETS), *IN_FP8])
def test_in_turns_a_session_has_the_same_bits_alone_and_beside_a_stranger(preset, attention):
    alone, beside = (latents(preset, "turns", stranger, attention=attention) for stranger in (False, True))
    assert torch.equal(alone, beside)


@pytest.mark.parametrize(("preset", "attention"), [*((name, "auto") for name in WINDOWED), *IN_FP8])
@pytest.mark.parametrize("schedule", ["turns", "batch"])
@pytest.mark.filterwarnings("error:passes run without")
def test_graphs_give_the_same_bits(preset, attention, schedule):
    options = {"chunks": 11, "attention": attention, "vae_precision": "fp16"}
    eager, graphs = (latents(preset, schedule, True, graphs=each, **options) for each in (False, True))
    assert torch.equal(eager, graphs)


@pytest.mark.parametrize("preset", PRESETS)
def test_in_a_batch_a_session_stays_close_to_itself_alone(preset):
    alone, beside = latents(preset, "batch", False), latents(preset, "batch", True)
    error = float((alone - beside).norm() / alone.norm())
    print(f"{preset}: {error:.2e} in a batch")
    assert error < BATCH_TOLERANCE
