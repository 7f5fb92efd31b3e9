"""Sessions as plain data in the real engine at small width: snapshot, resume, rewind, fork, a new prompt's rebuild."""

import functools
import io
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from test_engine import CONFIG, PRESET, Text, Vae, spec

from pipeline import revival
from pipeline.chunk import Control, Ended, Session, WorldFull
from pipeline.engine import Engine
from pipeline.kv_cache import KVCache
from pipeline.load import Parts
from pipeline.text_encoder import PromptCache
from pipeline.transformer import Transformer
from pipeline.vae import WanVAE, WanVAEConfig

SMALL = replace(PRESET, height=32, width=48)
PICTURES = replace(
    PRESET,
    transformer=replace(CONFIG, in_channels=12),
    image="channels",
    height=16,
    width=32,
    first_frames=1,
    chunk=3,
    window=9,
    sink=3,
)
CONTROLS = {
    0: Control(1, frozenset("w")),
    3: Control(2, frozenset("l"), "a desert"),
    5: Control(3, frozenset("wj")),
    9: Control(4, frozenset("d"), "a city at night"),
    11: Control(5, frozenset()),
}
CHUNKS = 14
SEEN_ONLY_TOLERANCE = 1e-3
"""Of the next chunk's latents where passes begin with what it sees; random weights."""


def small_engine(preset=SMALL, vae=None, **options) -> Engine:
    torch.manual_seed(0)
    model = Transformer(preset.transformer).eval().requires_grad_(False)
    return Engine(preset, Parts(model, vae or Vae(), PromptCache(Text())), **options)


def picture_engine(**options) -> Engine:
    torch.manual_seed(1)
    config = WanVAEConfig(dim=8, latent_channels=4, residual_blocks=1, mean=(0.0,) * 4, std=(1.0,) * 4)
    return small_engine(PICTURES, WanVAE(config).eval().requires_grad_(False), **options)


def picture(turn: int = 0) -> bytes:
    data = io.BytesIO()
    Image.linear_gradient("L").rotate(turn).save(data, "PNG")
    return data.getvalue()


def run(engine: Engine, session: str, chunks: range) -> list[np.ndarray]:
    """The frames of these chunks, with the controls that come before them."""
    made = []
    for chunk in chunks:
        if chunk in CONTROLS:
            engine.control(session, CONTROLS[chunk])
        (result,) = engine.step([session])
        assert not isinstance(result, Ended), result.reason
        assert result.index == chunk
        made.append(result.frames)
    return made


def opened(**options) -> Engine:
    engine = small_engine(**options)
    engine.open(spec("a"))
    return engine


def whole(**options) -> Session:
    engine = opened(**options)
    run(engine, "a", range(CHUNKS))
    return engine.snapshot("a")


@pytest.fixture(scope="module", params=["rebuild", "swap"])
def uninterrupted(request) -> tuple[str, Session]:
    return request.param, whole(prompt_change=request.param)


def same(some: Session, other: Session) -> bool:
    assert some.chunk == other.chunk and some.events == other.events
    return np.array_equal(some.latents, other.latents)


def distance(some: Session, other: Session) -> float:
    """Of the newest chunk's latents, relative."""
    a, b = some.latents[-1], other.latents[-1]
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@pytest.mark.parametrize("at", [0, 1, 4, 8, 10, 13])
def test_a_resumed_session_goes_on_bit_for_bit_in_another_engine(at, uninterrupted):
    change, expected = uninterrupted
    first, second = opened(prompt_change=change), small_engine(prompt_change=change)
    run(first, "a", range(at))
    second.resume(pickle.loads(pickle.dumps(first.snapshot("a"))))
    continued, resumed = run(first, "a", range(at, at + 1)), run(second, "a", range(at, CHUNKS))
    assert np.array_equal(continued[0], resumed[0])
    assert same(second.snapshot("a"), expected)


def test_rebuild_and_swap_differ():
    """So that the tests of resuming cannot pass on an engine that leaves the past alone."""
    assert distance(whole(prompt_change="rebuild"), whole(prompt_change="swap")) > 1e-5


@pytest.mark.parametrize("at", [4, 10])
def test_a_session_parked_while_its_past_is_written_anew_resumes_bit_for_bit(at):
    slow, parked, second = opened(), opened(), small_engine()
    for engine in (slow, parked, second):
        engine._pace = 1
    run(slow, "a", range(CHUNKS))
    run(parked, "a", range(at))
    data = parked.snapshot("a")
    assert [event.rewrites for event in data.events if event.prompt] == [1] * (1 if at == 4 else 2)
    second.resume(data)
    run(second, "a", range(at, CHUNKS))
    assert same(second.snapshot("a"), slow.snapshot("a"))


@pytest.mark.parametrize("seconds, chunks", [(0.1, 12), (0.4, 1), (0.49, 1), (2.0, 1)])
def test_as_much_of_the_past_is_written_anew_before_a_chunk_as_the_frame_rate_leaves_time_for(seconds, chunks):
    engine = small_engine(slots=1)
    engine.world = engine._describe([seconds])
    assert engine.preset.chunk_seconds == 0.5 and engine._rewrites_a_chunk([seconds]) == chunks


def test_in_parallel_too_a_resumed_session_has_the_same_bits():
    second = small_engine(schedule="parallel")
    first = opened(schedule="parallel")
    run(first, "a", range(8))
    second.resume(first.snapshot("a"))
    run(second, "a", range(8, CHUNKS)), run(first, "a", range(8, CHUNKS))
    assert same(second.snapshot("a"), first.snapshot("a"))


def test_passes_over_what_the_next_chunk_sees_come_close():
    expected = whole(prompt_change="swap")
    first, second = opened(prompt_change="swap"), small_engine(prompt_change="swap")
    run(first, "a", range(CHUNKS - 1))
    second.resume(first.snapshot("a", chunks=0), windows=0)
    run(second, "a", range(CHUNKS - 1, CHUNKS))
    assert 0 < distance(second.snapshot("a"), expected) < SEEN_ONLY_TOLERANCE


def test_a_session_without_the_latents_it_needs_is_made_again_from_its_history(uninterrupted):
    change, expected = uninterrupted
    data = expected.rewound(10, 77)
    second = small_engine(prompt_change=change)
    second.resume(replace(data, latents=data.latents[-1:]))
    run(second, "a", range(10, CHUNKS))
    assert same(second.snapshot("a"), expected)


def test_a_session_goes_back_and_the_same_controls_lead_to_the_same_place(uninterrupted):
    change, expected = uninterrupted
    engine = opened(prompt_change=change)
    run(engine, "a", range(12))
    engine.rewind("a", 7)
    run(engine, "a", range(7, CHUNKS))
    assert same(engine.snapshot("a"), expected)


def test_two_forks_part_only_by_their_later_controls():
    engine = opened()
    run(engine, "a", range(6))
    engine.resume(engine.snapshot("a"), "b")
    with pytest.raises(WorldFull):
        engine.resume(engine.snapshot("a"), "c")
    first, second = engine.step()
    assert np.array_equal(first.frames, second.frames)
    engine.control("b", Control(9, frozenset("s")))
    first, second = engine.step()
    assert not np.array_equal(first.frames, second.frames)


def test_a_session_with_a_picture_resumes_bit_for_bit_with_the_wan_decoder():
    first, second = picture_engine(), picture_engine()
    first.open(spec("a", image=picture()))
    frames = run(first, "a", range(11))
    second.resume(first.snapshot("a").rewound(10, first.preset.frames_until(10)))
    assert np.array_equal(run(second, "a", range(10, 11))[0], frames[10])


@pytest.fixture
def following(monkeypatch):
    """Sinks follow their streams from early on: from the chunk after the one that closes the ring."""
    monkeypatch.setattr("pipeline.engine.KVCache", functools.partial(KVCache, positions=SMALL.window))


@pytest.mark.parametrize("change", ["rebuild", "swap"])
def test_a_session_whose_sink_follows_resumes_and_rewinds_bit_for_bit(change, following):
    expected, first = whole(prompt_change=change), opened(prompt_change=change)
    second = small_engine(prompt_change=change)
    run(first, "a", range(12))
    turned = first._cache._turned[0]
    assert turned == [2 * 11 - SMALL.window + 2] * len(turned), "the last chunk's steps turned every layer's sink"
    second.resume(first.snapshot("a"))
    run(second, "a", range(12, CHUNKS))
    assert same(second.snapshot("a"), expected)
    for chunk in (8, 2):  # beyond where the sink begins to follow, and before
        first.rewind("a", chunk)
        run(first, "a", range(chunk, CHUNKS))
        assert same(first.snapshot("a"), expected)


def test_the_sink_of_these_tests_follows(following, monkeypatch):
    """So that they cannot pass on a cache that leaves every sink where it was."""
    turned = whole()
    monkeypatch.undo()
    assert distance(turned, whole()) > 1e-5


def test_a_replayed_session_whose_sink_follows_has_the_same_bits(following):
    expected, second = whole(), small_engine()
    data = expected.rewound(10, 77)
    second.resume(replace(data, latents=data.latents[-1:]))
    run(second, "a", range(10, CHUNKS))
    assert same(second.snapshot("a"), expected)


def latents_beside(schedule: str, strangers: bool) -> np.ndarray:
    """Of the watched session, alone or beside one of another picture, prompt, seed, camera, position and time."""
    engine = picture_engine(schedule=schedule)
    engine.open(spec("a", image=picture()))
    for chunk in range(6):
        if strangers and chunk in (2, 4):
            engine.close("early")
            engine.open(spec("late" if chunk == 4 else "early", "a shore", seed=8 + chunk, image=picture(90)))
        for name in ("early", "late"):
            engine.control(name, Control(chunk, frozenset("sj"), "fog" if chunk == 3 else None))
        if chunk in CONTROLS:
            engine.control("a", CONTROLS[chunk])
        engine.step()
    return engine.snapshot("a").latents


@pytest.mark.parametrize("schedule, tolerance", [("turns", 0.0), ("parallel", 0.0), ("batch", 1e-5)])
def test_a_stranger_of_another_picture_prompt_seed_camera_and_time_changes_nothing(schedule, tolerance):
    alone, beside = latents_beside(schedule, strangers=False), latents_beside(schedule, strangers=True)
    assert np.linalg.norm(alone - beside) <= tolerance * np.linalg.norm(alone)


def test_what_waits_for_the_next_chunk_is_kept():
    first, second = opened(), small_engine()
    run(first, "a", range(2))
    first.control("a", Control(7, frozenset("s"), "a shore"))
    second.resume(first.snapshot("a"), "b")
    (made,) = second.step()
    assert (made.sequence, made.scene, made.session) == (7, "scene of a shore", "b")


def test_the_latents_kept_of_a_session_are_bounded(monkeypatch):
    monkeypatch.setattr(revival, "HISTORY_BYTES", 0)
    engine = opened(prompt_change="swap")
    run(engine, "a", range(12))
    data = engine.snapshot("a")
    assert len(data.latents) == engine._revival.kept_chunks == 3 and len(data.first) == 1
    engine.rewind("a", 3)  # beyond them: it is made once more
    run(engine, "a", range(3, CHUNKS))
    assert np.array_equal(engine.snapshot("a").latents, whole(prompt_change="swap").latents[-3:])


def test_what_cannot_be_resumed_is_refused_with_a_reason():
    engine = opened()
    run(engine, "a", range(3))
    data = engine.snapshot("a")
    with pytest.raises(ValueError, match="live already"):
        engine.resume(data)
    with pytest.raises(ValueError, match="of the preset small; this engine runs other"):
        small_engine(replace(SMALL, name="other")).resume(data)
    with pytest.raises(ValueError, match="its chunks are"):
        small_engine(replace(SMALL, height=48)).resume(data)
    with pytest.raises(ValueError, match="no live session b"):
        engine.snapshot("b")
    with pytest.raises(ValueError, match="can go back to 0 up to 3, not 4"):
        engine.rewind("a", 4)
    assert len(engine.step()) == 1


def test_a_session_that_broke_down_is_not_kept(monkeypatch):
    engine = opened()
    noise = engine._noise
    monkeypatch.setattr(engine, "_noise", lambda slots, step: noise(slots, step) * float("nan"))
    engine.begin()  # whose result nobody has seen yet
    with pytest.raises(ValueError, match="not finite"):
        engine.snapshot("a")
