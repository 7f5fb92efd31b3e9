"""A stream has no end: no table of positions, no drift, the same memory and time for every chunk."""

import dataclasses
import gc
import json
import math

import pytest
import torch
from test_engine import CONFIG, PRESET, Text, Vae, small_engine
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import endless
from kernels import fused
from pipeline import camera
from pipeline.chunk import Control, SessionSpec
from pipeline.engine import Engine
from pipeline.kv_cache import POSITIONS, KVCache, Span
from pipeline.load import Parts
from pipeline.sampler import CONTEXT
from pipeline.text_encoder import PromptCache
from pipeline.transformer import Transformer, rope_angles, time_frequencies

TOKENS, HEADS, WIDTH, CHUNK, WINDOW, SINK = 2, 2, 12, 3, 9, 3
TOLERANCE = 1e-5
"""Of the relative error of outputs in float32; what is measured is some 1e-7."""


def make(sink=SINK, **options) -> KVCache:
    options = {"dtype": torch.float32, **options}
    return KVCache(1, 1, WINDOW, sink, TOKENS, HEADS, WIDTH, device="cpu", **options)


def attend(cache: KVCache, q, k, v) -> torch.Tensor:
    """A chunk of q, k, v before RoPE, (L, H, D) each, as self-attention hands it in."""
    view = cache.view([0], CHUNK, 1, TOKENS)
    q, k = (fused.rope(x[None], *view.rope).to(cache.dtype) for x in (q, k))
    result = view.attend(0, q, k, v[None].to(cache.dtype))[0]
    cache.advance([0], CHUNK)
    return result


def drawn(chunk: int) -> torch.Tensor:
    """q, k, v of a chunk before RoPE, (3, L, H, D)."""
    return torch.randn(3, CHUNK * TOKENS, HEADS, WIDTH, generator=torch.Generator().manual_seed(chunk))


def turned(x: torch.Tensor, positions: list[int]) -> torch.Tensor:
    """RoPE in float64; x: (L, H, D)."""
    cos, sin = rope_angles(torch.tensor([positions], dtype=torch.float64), 1, TOKENS, WIDTH, torch.device("cpu"))
    return fused.rope(x[None], cos, sin)[0]


def by_definition(chunk: int, sink: int = SINK, positions: int = POSITIONS) -> torch.Tensor:
    """What `chunk` gets when its window is moved to the front: small positions, no cache, nothing turned twice.

    Position 0 is the sink's first frame while the reference knows the chunk's last position; later the sink's follow.
    """
    frames = list(range((chunk + 1) * CHUNK))
    seen = frames if len(frames) <= WINDOW else frames[:sink] + frames[len(frames) - (WINDOW - sink) :]
    behind = max(0, len(frames) - positions)
    placed = [frame if frame < sink else frame - behind for frame in seen]
    parts = {number: drawn(number) for number in {frame // CHUNK for frame in seen}}
    rows = [parts[frame // CHUNK][:, frame % CHUNK * TOKENS :][:, :TOKENS] for frame in seen]
    _, k, v = torch.cat(rows, dim=1)
    q = turned(parts[chunk][0], placed[-CHUNK:])
    scores = torch.einsum("lhd,shd->hls", q, turned(k, placed)) / math.sqrt(WIDTH)
    return torch.einsum("hls,shd->lhd", scores.softmax(-1), v)


def error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours.double() - theirs.double()).norm() / theirs.double().norm()).item()


@pytest.mark.parametrize("sink, chunks", [(SINK, 5001), (0, 501)])
@torch.inference_mode()
def test_every_chunk_of_5000_attends_as_if_its_window_stood_at_the_beginning(sink, chunks):
    cache = make(sink)
    worst = 0.0
    for chunk in range(chunks):
        result = attend(cache, *drawn(chunk))
        if chunk < 20 or 330 < chunk < 360 or chunk % 500 == 0:
            worst = max(worst, error(result, by_definition(chunk, sink)))
    assert worst < TOLERANCE


def test_the_sink_stands_where_the_reference_has_it_until_the_reference_ends():
    cache = make()
    for chunk in range(POSITIONS // CHUNK):
        attend(cache, *drawn(chunk))
        if chunk == 0:
            written = cache.k[0, 0, : SINK * TOKENS].clone()
    assert torch.equal(cache.k[0, 0, : SINK * TOKENS], written)
    attend(cache, *drawn(POSITIONS // CHUNK))
    assert not torch.equal(cache.k[0, 0, : SINK * TOKENS], written)


def test_a_turned_sink_does_not_drift_in_bfloat16():
    """A thousand turns later it is the written key turned once, to the bit."""
    cache = make(dtype=torch.bfloat16)
    for chunk in range(1400):
        attend(cache, *drawn(chunk))
    frames = 1400 * CHUNK - POSITIONS
    written = turned(drawn(0)[1], [0, 1, 2]).bfloat16()
    pairs = len(time_frequencies(WIDTH, "cpu"))
    angles = frames * time_frequencies(WIDTH, "cpu")[None, None]
    expected = fused.rope(written[None, ..., : 2 * pairs], angles.cos().float(), angles.sin().float())[0]
    assert torch.equal(cache.k[0, 0, : SINK * TOKENS, :, : 2 * pairs], expected)
    assert torch.equal(cache.k[0, 0, : SINK * TOKENS, :, 2 * pairs :], written[..., 2 * pairs :])


@pytest.mark.parametrize("stored", [{"packed": True}, {"value_scales": [2.0]}], ids=["packed", "fp8"])
def test_a_sink_in_float8_is_turned_from_what_was_written_and_comes_back_to_the_byte(stored):
    cache = make(**stored)
    for chunk in range(400):
        attend(cache, *drawn(chunk))
        if chunk == 0:
            written = cache.k[0, 0, : SINK * TOKENS].view(torch.uint8).clone()
    turned_keys = cache.read(0, 0, [Span(0, SINK * TOKENS)])[0]
    frames, pairs = 400 * CHUNK - POSITIONS, len(time_frequencies(WIDTH, "cpu"))
    angles = frames * time_frequencies(WIDTH, "cpu")[None, None]
    expected = turned(drawn(0)[1], [0, 1, 2])
    expected[..., : 2 * pairs] = fused.rope(
        expected[None, ..., : 2 * pairs], angles.cos().float(), angles.sin().float()
    )
    assert 0.01 < error(turned_keys, expected) < 0.06
    cache.advance([0], -390 * CHUNK)
    attend(cache, *drawn(10))
    assert torch.equal(cache.k[0, 0, : SINK * TOKENS].view(torch.uint8), written)


def test_a_stream_that_is_taken_back_sees_its_sink_as_it_was():
    cache = make()
    for chunk in range(360):
        attend(cache, *drawn(chunk))
    cache.advance([0], -350 * CHUNK)
    for chunk in range(10, 14):
        result = attend(cache, *drawn(chunk))
    assert error(result, by_definition(13)) < TOLERANCE


def test_a_new_stream_in_a_slot_does_not_see_the_old_ones_turn():
    cache = make()
    for chunk in range(400):
        attend(cache, *drawn(chunk))
    cache.reset(0)
    for chunk in range(4):
        assert error(attend(cache, *drawn(chunk)), by_definition(chunk)) < TOLERANCE


@pytest.mark.parametrize("position", [10_000, 10**6, 10**8])
def test_scores_depend_on_relative_positions_alone(position):
    """10^8 latent frames are nine months at four a second."""
    q, k, _ = drawn(0)
    near, far = (
        torch.einsum("lhd,shd->hls", turned(q, [at, at + 1, at + 2]), turned(k, [at - 6, at - 5, at - 4]))
        for at in (6, position)
    )
    assert error(far, near) < 2e-6


def context_passes(model: Transformer, cache: KVCache, latents: torch.Tensor, text) -> list[torch.Tensor]:
    """The model's output for chunks of clean latents, (chunks, C, T, h, w), each keeping its keys and values."""
    time = model.embed_time(torch.tensor([CONTEXT.timestep]))
    outputs = []
    for latent in latents:
        view = cache.view([0], CHUNK, 2, 3)
        outputs.append(model(latent[None], time, text, None, view))
        cache.advance([0], CHUNK)
    return outputs


@torch.inference_mode()
def test_a_session_at_chunk_5000_equals_the_same_window_at_the_beginning():
    """Two layers see two windows back, so after three of the same latents nothing else is left in the output."""
    torch.manual_seed(0)
    model = Transformer(dataclasses.replace(CONFIG, camera_channels=0)).eval()
    latents, text = torch.randn(12, 4, CHUNK, 4, 6), model.embed_text(torch.randn(1, 3, 16))

    def stream(first: int, sink: int) -> torch.Tensor:
        """The outputs of the last window of 9 chunks from `first` on; the sink, and a whole ring, is the same."""
        cache = KVCache(2, 1, WINDOW, sink, 6, 4, 12, torch.float32, "cpu")
        context_passes(model, cache, latents[:3], text)
        cache.advance([0], first * CHUNK - cache.position(0))
        return torch.cat(context_passes(model, cache, latents[3:], text)[-3:])

    assert error(stream(4991, sink=0), stream(3, sink=0)) < TOLERANCE
    # With a sink from where it follows: before, each chunk sees it a little further away, as in the reference.
    follows = POSITIONS // CHUNK
    assert error(stream(4991, sink=SINK), stream(follows, sink=SINK)) < TOLERANCE
    assert error(stream(4991, sink=SINK), stream(3, sink=SINK)) > 10 * TOLERANCE


def test_an_engine_past_the_limit_gives_the_same_whether_or_not_its_context_pass_waits(monkeypatch):
    """The owed chunk sees the sink where its own steps saw it, not where the chunk after it does."""
    together, apart = small_engine(), small_engine()
    made = []
    for engine in (together, apart):
        engine._cache._follow_from = PRESET.window
        engine.open(SessionSpec("a", "a meadow", 1))
        for _ in range(8):
            (chunk,) = engine.step()
            if engine is apart:
                engine.settle()
        made.append(torch.from_numpy(chunk.frames).float())
    assert together._cache._turned[0] == [16 - 6] * 2
    assert (made[0] - made[1]).abs().max() <= 1  # of 255: what a rounding at half turns


class Work(TorchDispatchMode):
    """Counts the operations under it, and the numbers in what they return."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = self.numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.operations += 1
        parts = result if isinstance(result, list | tuple) else (result,)
        self.numbers += sum(part.numel() for part in parts if isinstance(part, torch.Tensor))
        return result


def test_a_chunk_is_the_same_work_however_long_the_stream_has_run():
    engine = small_engine(slots=1)
    engine.open(SessionSpec("a", "a meadow", 1))
    for _ in range(4):
        engine.step()
    works = []
    for position in (8, 600, 2000, 10**6):
        engine.settle()
        engine._cache.advance([0], position - engine._cache.position(0))
        engine.step()  # its sink is where it belongs now
        with Work() as work:
            engine.step()
        works.append((work.operations, work.numbers))
    assert works[0] == works[1] and works[2] == works[3]
    assert works[1][0] < works[2][0] < 1.2 * works[1][0]  # the sink's turn


def tensors_alive() -> tuple[int, int]:
    """How many, and their bytes."""
    gc.collect()
    sizes = [x.numel() * x.element_size() for x in gc.get_objects() if isinstance(x, torch.Tensor)]
    return len(sizes), sum(sizes)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of torch's own lazy objects, when they are looked at
def test_an_engine_runs_on_past_the_references_last_position_in_the_same_memory(monkeypatch):
    monkeypatch.setattr("pipeline.revival.HISTORY_BYTES", 0)  # or its bound would not be reached here
    preset = dataclasses.replace(PRESET, steps=PRESET.steps[:1])
    torch.manual_seed(0)
    model = Transformer(preset.transformer).eval().requires_grad_(False)
    engine = Engine(preset, Parts(model, Vae(), PromptCache(Text())), slots=1)
    engine.open(SessionSpec("a", "a meadow", 1))
    engine.control("a", Control(1, frozenset("wj")))
    for _ in range(8):
        engine.step()
    engine._cache.advance([0], 10**6)
    engine.step()
    before = tensors_alive()
    pieces = engine._revival.kept_chunks  # so many chunks lie in one piece of memory, which is made for all of them
    steps = 200 // pieces * pieces
    for _ in range(steps):
        first_frame = engine.step()[0].first_frame
    assert first_frame == 8 * (8 + steps) - 3
    assert tensors_alive() == before


def test_the_benchmark_measures_time_and_memory_of_chunks(capsys, monkeypatch):
    monkeypatch.setattr(endless, "MARKS", (20, 25))
    monkeypatch.setattr(endless, "COMPARED", 25)
    assert endless.main(["--chunks", "25", "--device", "cpu"]) == 0
    *_, compared, _, last = capsys.readouterr().out.splitlines()
    result = json.loads(last)
    assert [point["chunk"] for point in result["points"]] == [20, 25]
    assert result["points"][0]["times_chunk_20"] == 1 and result["chunk_300_against_20"] > 0
    assert compared.startswith("chunk 25 against chunk 20: ") and compared.endswith("1.00 +- 0.02")
    assert result["points"][0]["seconds_a_chunk"] > 0 and result["points"][0]["rss_mb"] > 0 and result["turn_ms"] > 0


def test_a_walker_far_out_moves_as_at_the_origin():
    """A million units and as many turns from where it began, which is two weeks of holding a key."""
    keys = [frozenset("wl"), frozenset("wdi"), frozenset("sj"), frozenset("w")] * 2
    near, _ = camera.walk(camera.Pose(0.0, 0.0, 0.5, 0.1), keys, [4, 4])
    far, _ = camera.walk(camera.Pose(1e6, -1e6, 0.5 + 2 * math.pi * 1e6, 0.1), keys, [4, 4])
    torch.testing.assert_close(camera.live_motion(far), camera.live_motion(near), atol=1e-6, rtol=0)
