"""The real engine at small width with random weights: isolation, boundaries, pictures, endings."""

import dataclasses
import itertools
import math
import time

import numpy as np
import pytest
import torch

from kernels.fp8 import FP8_MAX
from kernels.fp8_attention import VALUES_SIZE
from pipeline import engine as engine_module
from pipeline.chunk import Chunk, Control, Ended, SessionSpec, WorldFull
from pipeline.engine import Engine, _soonest, build
from pipeline.load import Parts
from pipeline.presets import Preset
from pipeline.sampler import steps_from_indexes
from pipeline.text_encoder import EncodedPrompt, PromptCache
from pipeline.transformer import Transformer, TransformerConfig

CONFIG = TransformerConfig(
    dim=48, ffn_dim=96, heads=4, layers=2, in_channels=4, out_channels=4, text_dim=16, text_rows=8, camera_channels=384
)
PRESET = Preset(
    name="small",
    summary="for tests",
    transformer=CONFIG,
    steps=steps_from_indexes((0, 500), shift=3.0),
    chunk=2,
    window=6,
    sink=2,
    control="cam",
    image="none",
    height=64,
    width=96,
)
BATCH_TOLERANCE = 1e-5


class Text:
    """Rows that depend on the prompt's characters; counts how often it had to encode."""

    def __init__(self):
        self.encoded = 0

    def encode(self, prompt: str) -> EncodedPrompt:
        self.encoded += 1
        rows = torch.tensor([ord(c) for c in prompt[:8]]).float().unsqueeze(1)
        rows = torch.sin(rows * torch.arange(1, 17))
        return EncodedPrompt(rows, f"scene of {prompt}", ("xyzzy",), (("elm", "trees"),))

    def merge(self, previous: str, prompt: str) -> str:
        return prompt


class Decoder:
    """Each frame is the latent's first channels made large, plus what the decoder saw before."""

    reach = 2

    def reset(self) -> None:
        self.past = None

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        first = self.past is None
        seen = latent[:3] if first else 0.5 * self.past + latent[:3]
        self.past = latent[:3]
        large = seen.repeat_interleave(8, -1).repeat_interleave(8, -2)
        return large.repeat_interleave(4, 1)[:, 3 if first else 0 :].clamp(-1, 1)


class Vae:
    dtype = torch.float32

    def decoder(self) -> Decoder:
        return Decoder()


def small_engine(preset: Preset = PRESET, text: Text | None = None, **options) -> Engine:
    torch.manual_seed(0)
    model = Transformer(preset.transformer).eval().requires_grad_(False)
    return Engine(preset, Parts(model, Vae(), PromptCache(text or Text())), **options)


def spec(name: str, prompt: str = "a meadow", seed: int = 1, **more) -> SessionSpec:
    return SessionSpec(name, prompt, seed, **more)


class Latents:
    """An engine's clean latents by session, as they reach the decoder."""

    def __init__(self, engine: Engine, monkeypatch):
        self.by_session: dict[str, list[torch.Tensor]] = {}
        decode_slot = engine._decode_slot

        def recording(slot, latent):
            self.by_session.setdefault(slot.spec.session, []).append(latent.clone())
            return decode_slot(slot, latent)

        monkeypatch.setattr(engine, "_decode_slot", recording)

    def of(self, session: str) -> torch.Tensor:
        return torch.stack(self.by_session[session])


CONTROLS = {0: Control(1, frozenset("w")), 3: Control(2, frozenset("l"), "a desert"), 5: Control(3, frozenset("wj"))}


def walk(engine: Engine, session: str, chunk: int) -> None:
    """The controls of the session that every isolation test watches, by the chunk they come before."""
    if chunk in CONTROLS:
        engine.control(session, CONTROLS[chunk])


def run_alone(monkeypatch, chunks: int = 8, **options) -> torch.Tensor:
    engine = small_engine(**options)
    latents = Latents(engine, monkeypatch)
    engine.open(spec("watched"))
    for chunk in range(chunks):
        walk(engine, "watched", chunk)
        engine.step()
    return latents.of("watched")


def run_beside_strangers(monkeypatch, chunks: int = 8, **options) -> torch.Tensor:
    """One stranger joins two chunks later and leaves, another takes the slot."""
    engine = small_engine(**options)
    latents = Latents(engine, monkeypatch)
    engine.open(spec("watched"))
    for chunk in range(chunks):
        if chunk == 2:
            engine.open(spec("stranger", "a night city", seed=99))
        if chunk == 5:
            engine.close("stranger")
            engine.open(spec("another", "a shore", seed=7))
        engine.control("stranger", Control(chunk, frozenset("sd")))
        walk(engine, "watched", chunk)
        engine.step()
    return latents.of("watched")


def test_in_turns_a_session_has_the_same_bits_alone_and_beside_strangers(monkeypatch):
    assert torch.equal(run_alone(monkeypatch, schedule="turns"), run_beside_strangers(monkeypatch, schedule="turns"))


def test_in_parallel_a_session_has_the_same_bits_alone_and_beside_strangers(monkeypatch):
    alone = run_alone(monkeypatch, schedule="parallel")
    assert torch.equal(alone, run_beside_strangers(monkeypatch, schedule="parallel"))
    assert (alone - run_alone(monkeypatch, schedule="turns")).norm() / alone.norm() < BATCH_TOLERANCE


def test_in_one_batch_a_session_comes_within_1e_5_of_itself_alone(monkeypatch):
    alone, beside = run_alone(monkeypatch, schedule="batch"), run_beside_strangers(monkeypatch, schedule="batch")
    assert (alone - beside).norm() / alone.norm() < BATCH_TOLERANCE


def test_the_watched_session_depends_on_its_controls(monkeypatch):
    """So that the tests of isolation cannot pass on a model that ignores what it is told."""
    steered = run_alone(monkeypatch)
    engine = small_engine()
    latents = Latents(engine, monkeypatch)
    engine.open(spec("watched"))
    engine.step(), engine.step()
    assert not torch.allclose(steered[1], latents.of("watched")[1], atol=1e-4)


def test_prewarm_leaves_the_bits_as_they_were(monkeypatch):
    cold = run_alone(monkeypatch)
    engine = small_engine()
    world = engine.prewarm()
    latents = Latents(engine, monkeypatch)
    engine.open(spec("watched"))
    for chunk in range(8):
        walk(engine, "watched", chunk)
        engine.step()
    assert world.slots == 2 and len(world.chunk_seconds) == 2
    assert (world.image, world.camera) == (engine.preset.picture_wanted, True)
    assert torch.equal(cold, latents.of("watched"))


@pytest.mark.parametrize(("busy", "slots", "patience"), [(9, 2, 60), (10**6, 1, 0.3)], ids=["for a while", "for ever"])
def test_prewarm_waits_a_while_for_another_program_to_pass(monkeypatch, busy, slots, patience):
    monkeypatch.setattr(engine_module, "PATIENCE_SECONDS", patience)
    engine, crowded = small_engine(), itertools.count()

    def timed_step(sessions):
        time.sleep(0.01)
        return 10.0 if len(sessions) == 2 and next(crowded) < engine.window_chunks + busy else 0.01

    monkeypatch.setattr(engine, "_timed_step", timed_step)
    monkeypatch.setattr(engine, "_candidates", lambda: ("batch",))
    assert engine.prewarm().slots == slots


def test_an_engine_that_is_told_what_one_before_it_found_times_nothing_and_is_alike(monkeypatch):
    first, again = small_engine(schedule="batch"), small_engine(schedule="batch")
    before = dataclasses.replace(first.prewarm(), chunk_seconds=(0.03, 0.05))
    monkeypatch.setattr(again, "_quickest_step", None)
    assert again.prewarm(before=before) == before and again.schedule == "batch" and not list(again._slots)
    latents = Latents(again, monkeypatch)
    again.open(spec("watched"))
    for chunk in range(8):
        walk(again, "watched", chunk)
        again.step()
    assert torch.equal(latents.of("watched"), run_alone(monkeypatch, schedule="batch"))


def test_prewarm_refuses_weights_that_make_no_numbers(monkeypatch):
    """Each step would end its sessions, and the next ones, without any, would be measured as very quick."""
    engine = small_engine()
    noise = engine._noise
    monkeypatch.setattr(engine, "_noise", lambda slots, step: noise(slots, step) * float("nan"))
    with pytest.raises(ValueError, match="no session can be made with these weights"):
        engine.prewarm()
    assert engine.world is None and not list(engine._slots)


def test_a_context_pass_by_itself_gives_what_one_within_the_next_chunk_gives(monkeypatch):
    engine = small_engine()
    latents = Latents(engine, monkeypatch)
    engine.open(spec("watched"))
    for chunk in range(8):
        walk(engine, "watched", chunk)
        engine.step()
        engine.settle()
    apart, along = latents.of("watched"), run_alone(monkeypatch)
    assert (apart - along).norm() / along.norm() < BATCH_TOLERANCE


def rows_of_passes(engine, monkeypatch, chunks=3):
    """How many rows go through the transformer for each chunk of one session."""
    rows, run = [], engine._pass
    monkeypatch.setattr(engine, "_pass", lambda batch, latents, steps: rows.extend(steps) or run(batch, latents, steps))
    counts = []
    for _ in range(chunks):
        engine.step()
        counts.append(len(rows))
        rows.clear()
    return counts


@pytest.mark.parametrize(("context_pass", "expected"), [("exact", [2, 3, 3]), ("reuse", [2, 2, 2])])
def test_reusing_the_last_denoising_pass_saves_one_pass_a_chunk(monkeypatch, context_pass, expected):
    engine = small_engine(context_pass=context_pass)
    engine.open(spec("a"))
    assert rows_of_passes(engine, monkeypatch) == expected and engine.passes == expected[-1]


def test_reuse_keeps_the_keys_of_the_last_denoising_pass(monkeypatch):
    """The second chunk is another one than behind a clean pass, and the first is the same."""
    exact, reuse = (run_alone(monkeypatch, context_pass=name) for name in ("exact", "reuse"))
    assert torch.equal(exact[0], reuse[0]) and not torch.equal(exact[1], reuse[1])


def test_with_reuse_a_picture_is_remembered_as_it_is_and_not_as_it_was_denoised(monkeypatch):
    engine = build("tiny", slots=1, device="cpu", context_pass="reuse")
    engine.open(spec("a", image=engine_module._grey_png()))
    steps = len(engine.preset.steps)
    assert rows_of_passes(engine, monkeypatch) == [steps, steps + 1, steps]


def test_with_reuse_too_a_session_is_alone_in_turns(monkeypatch):
    alone = run_alone(monkeypatch, schedule="turns", context_pass="reuse")
    assert torch.equal(alone, run_beside_strangers(monkeypatch, schedule="turns", context_pass="reuse"))


def test_with_reuse_a_resumed_session_goes_on_from_clean_keys(monkeypatch):
    """As its file says nothing of the option, an engine with the other one gives the very same next chunk."""
    engine = small_engine(context_pass="reuse")
    engine.open(spec("watched"))
    for chunk in range(6):
        walk(engine, "watched", chunk)
        engine.step()
    data, found = engine.snapshot("watched"), []
    for context_pass in ("exact", "reuse"):
        again = small_engine(context_pass=context_pass)
        again.resume(data)
        latents = Latents(again, monkeypatch)
        again.step()
        found.append(latents.of("watched")[0])
    assert (found[0] - found[1]).norm() / found[0].norm() < BATCH_TOLERANCE


@pytest.mark.parametrize("schedule", ["turns", "parallel"])
def test_with_attention_in_fp8_a_session_is_its_own_and_a_little_off(monkeypatch, schedule):
    beside = run_beside_strangers(monkeypatch, schedule=schedule, attention="fp8")
    alone, exact = (run_alone(monkeypatch, schedule=schedule, attention=name) for name in ("fp8", "auto"))
    assert torch.equal(beside, alone)
    assert 1e-4 < (alone - exact).norm() / exact.norm() < 0.01


@pytest.mark.parametrize("attention", ["cudnn", "flash4", "fp4"])
def test_attention_that_cannot_be_is_refused_before_any_weights_are_read(monkeypatch, attention):
    monkeypatch.setattr("pipeline.engine.load_parts", lambda *_: pytest.fail("weights were read"))
    with pytest.raises(ValueError, match=f"no attention 'fp4'|attention backend '{attention}' cannot run: "):
        build("wan2.1-1.3b-longlive", "random", device="cpu", attention=attention)


def test_the_tiny_worlds_values_have_about_the_size_that_attention_in_fp8_brings_them_to(monkeypatch):
    engine, sizes = build("tiny", slots=1, device="cpu", attention="fp8"), []
    cache = engine._cache
    write = cache.write
    monkeypatch.setattr(cache, "write", lambda *given: (sizes.append(size_of(cache, *given)), write(*given)))
    engine.open(spec("a"))
    for _ in range(3):
        engine.step()
    means, largest = zip(*sizes, strict=True)
    assert min(means) > VALUES_SIZE / 10 and max(means) < 2 * VALUES_SIZE and max(largest) < FP8_MAX / 4


def size_of(cache, layer, slot, rows, k, v):
    """Root mean square and largest of values as they are stored, before they are rounded."""
    stored = v * cache._value_scales[layer]
    return float(stored.square().mean().sqrt()), float(stored.abs().max())


def test_an_unknown_context_pass_overlap_cache_or_attention_is_refused():
    with pytest.raises(ValueError, match="no attention 'fp4'; it is one of auto, fp8, flash4, "):
        small_engine(attention="fp4")
    with pytest.raises(ValueError, match="no context pass 'none'; it is exact or reuse"):
        small_engine(context_pass="none")
    with pytest.raises(ValueError, match="no overlap 'last'; it is one of yes, first, no"):
        small_engine(overlap="last")
    with pytest.raises(ValueError, match="no cache 'int8'; it is plain or fp8"):
        small_engine(cache="int8")


def test_the_first_chunk_is_shorter_and_frames_are_counted_on():
    engine = small_engine()
    engine.open(spec("a"))
    chunks = [engine.step()[0] for _ in range(3)]
    assert [(c.index, c.first_frame, c.frames.shape) for c in chunks] == [
        (0, 0, (5, 64, 96, 3)),
        (1, 5, (8, 64, 96, 3)),
        (2, 13, (8, 64, 96, 3)),
    ]
    assert chunks[0].frames.dtype == np.uint8 and set(chunks[0].seconds) == {"prepare", "denoise", "decode", "total"}


def test_a_chunks_pictures_come_a_latent_frame_at_a_time():
    engine, whole = small_engine(), small_engine()
    for each in (engine, whole):
        each.open(spec("a"))
    for parts in ((1, 4), (4, 4)):
        (pending,), (chunk,) = engine.begin(), whole.step()
        assert pending.parts == parts and pending.frames == sum(parts)
        frames = [pending.part(number) for number in range(len(parts))]
        assert [len(each) for each in frames] == list(parts)
        assert np.array_equal(np.concatenate(frames), chunk.frames)
        assert np.array_equal(pending.result().frames, chunk.frames)


def test_no_part_of_a_broken_chunk_is_shown(monkeypatch):
    engine = small_engine()
    spoil(engine, monkeypatch, "sick", 0)
    engine.open(spec("sick"))
    (pending,) = engine.begin()
    assert all(isinstance(pending.part(number), Ended) for number in range(2))
    assert isinstance(pending.result(), Ended)


@pytest.mark.parametrize("schedule", ["turns", "batch"])
def test_a_chunk_arrives_in_parts_that_are_the_whole(schedule):
    apart, whole = small_engine(schedule=schedule), small_engine(schedule=schedule)
    for engine in (apart, whole):
        engine.open(spec("a"))
        engine.open(spec("b", seed=2))
    for number in range(2):
        for pending, chunk in zip(apart.begin(), whole.step(), strict=True):
            parts = list(pending.arriving())
            assert pending.frames == len(chunk.frames) and not chunk.more
            assert [len(part.frames) for part in parts] == ([4, 4] if number else [1, 4])
            assert [part.first_frame - chunk.first_frame for part in parts] == [0, 4 if number else 1]
            assert [part.more for part in parts] == [True, False] and parts[0].seconds == {}
            assert {(part.session, part.index) for part in parts} == {(chunk.session, number)}
            assert np.array_equal(np.concatenate([part.frames for part in parts]), chunk.frames)


def test_a_chunk_says_which_control_it_obeys_and_how_the_prompt_was_understood():
    engine = small_engine()
    engine.open(spec("a"))
    engine.control("a", Control(4, frozenset("w")))
    engine.control("a", Control(5, frozenset("l"), "a desert"))
    (chunk,) = engine.step()
    assert (chunk.sequence, chunk.scene, chunk.unknown_words) == (5, "scene of a desert", ("xyzzy",))
    assert chunk.guessed_words == (("elm", "trees"),)


def test_only_the_named_sessions_are_stepped():
    engine = small_engine()
    engine.open(spec("a")), engine.open(spec("b"))
    assert [chunk.session for chunk in engine.step(["b"])] == ["b"]
    assert [(chunk.session, chunk.index) for chunk in engine.step()] == [("a", 0), ("b", 1)]


def test_a_full_engine_refuses_the_third_and_takes_it_when_one_has_gone():
    engine = small_engine()
    engine.open(spec("a")), engine.open(spec("b"))
    with pytest.raises(WorldFull):
        engine.open(spec("c"))
    engine.close("a")
    engine.open(spec("c"))
    assert {chunk.session for chunk in engine.step()} == {"b", "c"}


def test_a_slot_with_broken_latents_ends_and_its_neighbour_keeps_its_bits(monkeypatch):
    engine = small_engine(schedule="turns")
    latents = Latents(engine, monkeypatch)
    noise = engine._noise

    def poisoned(slots, step):
        made = noise(slots, step)
        rows = [row for row, slot in enumerate(slots) if slot.spec.session == "sick" and slot.chunk == 2]
        made[rows] = float("nan")
        return made

    monkeypatch.setattr(engine, "_noise", poisoned)
    engine.open(spec("watched")), engine.open(spec("sick", seed=5))
    results = []
    for chunk in range(8):
        walk(engine, "watched", chunk)
        results += engine.step()
    ended = [result for result in results if isinstance(result, Ended)]
    assert [end.session for end in ended] == ["sick"] and "not finite" in ended[0].reason
    assert torch.equal(latents.of("watched"), run_alone(monkeypatch))


SCHEDULES = ["turns", "parallel", "batch"]


def spoil(engine: Engine, monkeypatch, session: str, chunk: int) -> None:
    """One chunk of one session is made from what is no number."""
    noise = engine._noise

    def poisoned(slots, step):
        made = noise(slots, step)
        made[[row for row, slot in enumerate(slots) if slot.spec.session == session and slot.chunk == chunk]] = (
            torch.nan
        )
        return made

    monkeypatch.setattr(engine, "_noise", poisoned)


def beside(monkeypatch, schedule: str, neighbour) -> tuple[torch.Tensor, list[Ended]]:
    """The watched session's latents beside one that `neighbour(engine, chunk)` steers, and what ended."""
    engine = small_engine(schedule=schedule)
    latents = Latents(engine, monkeypatch)
    engine.open(spec("watched")), engine.open(spec("other", seed=5))
    ended = []
    for chunk in range(6):
        walk(engine, "watched", chunk)
        neighbour(engine, chunk)
        ended += [result for result in engine.step() if isinstance(result, Ended)]
    return latents.of("watched"), ended


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_what_is_no_number_in_one_slot_leaves_the_others_bits_as_they_were(monkeypatch, schedule):
    def sick(engine, chunk):
        if chunk == 0:
            spoil(engine, monkeypatch, "other", 2)

    def leaves(engine, chunk):
        if chunk == 3:
            engine.close("other")

    broken, ended = beside(monkeypatch, schedule, sick)
    well, _ = beside(monkeypatch, schedule, leaves)
    assert [end.session for end in ended] == ["other"] and torch.equal(broken, well)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_control_that_cannot_be_obeyed_ends_its_slot_alone(monkeypatch, schedule):
    def asks_too_much(engine, chunk):
        if chunk == 3:
            # Eight rows are taken; the encoder that is wrapped here gives nine.
            encode = engine._text.encode
            long = EncodedPrompt(torch.zeros(9, 16), "", ())
            monkeypatch.setattr(engine._text, "encode", lambda text: long if text == "too long" else encode(text))
            engine.control("other", Control(1, prompt="too long"))

    def leaves(engine, chunk):
        if chunk == 3:
            engine.close("other")

    broken, ended = beside(monkeypatch, schedule, asks_too_much)
    well, _ = beside(monkeypatch, schedule, leaves)
    assert "at most 8" in ended[0].reason and torch.equal(broken, well)


@pytest.mark.parametrize("schedule", ["turns", "batch"])
def test_the_next_session_in_a_sick_slot_is_as_in_a_fresh_one(monkeypatch, schedule):
    engine = small_engine(slots=1, schedule=schedule)
    spoil(engine, monkeypatch, "sick", 2)
    engine.open(spec("sick", seed=5))
    for _ in range(2):
        engine.step()
    engine.settle()
    for layer in (engine._cache.k, engine._cache.v):
        layer[:] = torch.nan  # what a broken chunk may have left anywhere in its rows
    assert isinstance(engine.step()[0], Ended)
    latents = Latents(engine, monkeypatch)
    engine.open(spec("watched"))
    for chunk in range(8):
        walk(engine, "watched", chunk)
        engine.step()
    assert torch.equal(latents.of("watched"), run_alone(monkeypatch, slots=1, schedule=schedule))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_one_live_slot_of_two_costs_one(monkeypatch, schedule):
    engine = small_engine(schedule=schedule)
    rows = []
    run_pass = engine._pass
    monkeypatch.setattr(engine, "_pass", lambda batch, x, steps: (rows.append(len(x)), run_pass(batch, x, steps))[1])
    engine.open(spec("a"))
    engine.step(), engine.step()
    assert rows == [1, 1, 2, 1]  # two passes a chunk; the first of a later chunk takes the chunk before along


@pytest.mark.parametrize("schedule, expected", [("turns", [1, 1]), ("batch", [2])])
def test_owed_context_passes_of_a_batch_run_as_one(monkeypatch, schedule, expected):
    engine, alone = small_engine(schedule=schedule), small_engine(schedule="turns")
    rows, run_pass = [], engine._pass
    for each in (engine, alone):
        each.open(spec("a")), each.open(spec("b", seed=7))
        each.step()
    monkeypatch.setattr(engine, "_pass", lambda batch, x, steps: (rows.append(len(x)), run_pass(batch, x, steps))[1])
    engine.settle(), alone.settle(), engine.settle()
    assert rows == expected
    written = slice(0, PRESET.chunk * math.prod(PRESET.token_grid))
    torch.testing.assert_close(engine._cache.k[:, :, written], alone._cache.k[:, :, written], rtol=1e-4, atol=1e-5)


def test_closing_a_session_that_has_gone_is_no_error():
    engine = small_engine()
    engine.close("nobody")
    engine.control("nobody", Control(1))
    assert engine.step() == []


def test_a_prompt_is_encoded_once_until_the_cache_is_cleared():
    encoder = Text()
    engine = small_engine(text=encoder)
    for name in ("a", "b"):
        engine.open(spec(name, "the same"))
        engine.close(name)
    assert encoder.encoded == 1
    engine.clear_text_cache()
    engine.open(spec("c", "the same"))
    assert encoder.encoded == 2


def test_a_script_moves_the_camera_like_held_keys_do():
    held, scripted = small_engine(), small_engine()
    held.open(spec("a"))
    scripted.open(spec("a", script=(frozenset("l"),) * 12))
    for _ in range(2):
        held.control("a", Control(1, frozenset("l")))
        assert np.array_equal(held.step()[0].frames, scripted.step()[0].frames)


def test_a_model_of_pictures_asks_for_one_and_a_model_of_prompts_refuses_one():
    with pytest.raises(ValueError, match="takes no picture"):
        small_engine().open(spec("a", image=b"not a picture"))
    config = dataclasses.replace(CONFIG, in_channels=4 + 4 + 4)
    pictures = small_engine(dataclasses.replace(PRESET, transformer=config, image="channels"))
    with pytest.raises(ValueError, match="give it one"):
        pictures.open(spec("a"))


@pytest.mark.parametrize(
    "options, words",
    [
        ({"preset": "huge"}, "no preset 'huge'; there are tiny"),
        ({"slots": 0}, "at least 1"),
        ({"schedule": "random"}, "auto, batch, turns, parallel"),
        ({"prompt_change": "forget"}, "no prompt change 'forget'; it is rebuild or swap"),
        ({"device": "tpu"}, "auto, cpu or cuda"),
        ({"preset": "lingbot-world-fast"}, "--weights"),
        ({"weights": "no/such/folder"}, "no/such/folder"),
    ],
)
def test_a_wrong_option_is_refused_with_what_would_be_right(options, words):
    with pytest.raises(ValueError, match=words):
        build(**options)


def test_every_result_is_a_chunk_with_finite_times():
    engine = small_engine()
    engine.open(spec("a"))
    (chunk,) = engine.step()
    assert isinstance(chunk, Chunk) and all(seconds >= 0 for seconds in chunk.seconds.values())


def test_turns_answer_after_one_chunk_where_there_is_time_for_all_and_else_after_all_of_them():
    assert _soonest({"turns": [0.3, 0.6], "batch": [0.3, 0.4]}, chunk_seconds=1.0) == "turns"
    assert _soonest({"turns": [0.4, 0.8], "batch": [0.4, 0.7]}, chunk_seconds=1.0) == "batch"
