"""How much of its stream a model without a window keeps."""

import dataclasses

import pytest
import torch
from test_engine import PRESET, small_engine

from pipeline.chunk import SessionSpec
from pipeline.context import GLOBAL_CONTEXT, cache_bytes, choose_context, fitting_context
from pipeline.kv_cache import POSITIONS, KVCache
from pipeline.presets import find_preset
from pipeline.stored import Stored, stored_as

CPU, BF16 = torch.device("cpu"), Stored(torch.bfloat16)
FAST = find_preset("lingbot-world-fast")


def chosen(preset, asked, slots=2):
    def rehearse(context):
        raise AssertionError("nothing is measured on a CPU")

    return choose_context(preset, asked, slots, CPU, BF16, rehearse)


def test_a_window_of_ones_own_is_kept_and_no_context_taken():
    assert chosen(PRESET, None) == PRESET.window
    with pytest.raises(ValueError, match="the preset small has a window of its own, 6 latent frames"):
        chosen(PRESET, 30)


def test_on_a_cpu_the_default_is_the_length_of_the_clips_trained_on():
    assert chosen(FAST, None) == GLOBAL_CONTEXT
    assert chosen(dataclasses.replace(FAST, sink=20), None) == 23  # or there would be no room for a chunk


def test_a_context_that_can_be_is_taken_as_it_is():
    assert [chosen(FAST, 6, slots=1), chosen(FAST, 7, slots=1)] == [6, 7]


@pytest.mark.parametrize(
    "asked, words",
    [
        (5, "is 5 latent frames; the preset lingbot-world-fast needs at least 6, a sink of 3 and a chunk of 3"),
        (0, "needs at least 6"),
        (-9, "needs at least 6"),
        (10**6, "takes 2555905.3 GB with 2 slots, and there are"),
    ],
)
def test_a_context_that_cannot_be_gets_a_sentence(asked, words):
    with pytest.raises(ValueError, match=words):
        chosen(FAST, asked)


@pytest.mark.parametrize("context, slots", [(6, 1), (40, 2)])
@pytest.mark.parametrize("cache, attention", [("plain", "auto"), ("fp8", "auto"), ("plain", "fp8"), ("fp8", "fp8")])
def test_the_bytes_are_those_that_a_cache_takes(context, slots, cache, attention):
    model, tokens = FAST.transformer, 1560
    sizes = model.layers, slots, context, FAST.sink, tokens, model.heads, model.head_width
    scales = [1.0] * model.layers if attention == "fp8" else None
    made = KVCache(*sizes, torch.bfloat16, "meta", packed=cache == "fp8", value_scales=scales)
    taken = sum(each.nbytes for each in vars(made).values() if isinstance(each, torch.Tensor))
    assert cache_bytes(FAST, context, slots, stored_as(cache, attention, torch.bfloat16)) == taken


def test_the_memory_is_filled_to_the_last_frame_that_fits():
    for room in (20e9, 33.3e9, 60e9):
        frames = fitting_context(FAST, 2, BF16, int(room))
        assert cache_bytes(FAST, frames, 2, BF16) <= room < cache_bytes(FAST, frames + 1, 2, BF16)
    assert fitting_context(FAST, 1, BF16, 10**15) == POSITIONS


def test_a_memory_without_room_for_a_chunk_is_told_with_what_is_missing():
    with pytest.raises(ValueError, match=r"with 2 slots: 6\.7 GB are missing; try fewer slots"):
        fitting_context(FAST, 2, BF16, 10 * 10**9)


def test_a_stream_goes_on_at_the_bound_of_its_context():
    """Exactly as a model with that window and sink does."""
    engines = [small_engine(dataclasses.replace(PRESET, window=None), context=6), small_engine(PRESET)]
    for engine in engines:
        engine.open(SessionSpec("a", "a meadow", 1))
    for _ in range(12):
        bounded, windowed = (engine.step()[0].frames for engine in engines)
        assert (bounded == windowed).all()


class FakeGPU:
    """torch.cuda's counters as a caching allocator keeps them; `used` is what a rehearsal takes at its peak."""

    def __init__(self, monkeypatch, total=80e9, weights=40e9, used=25e9):
        self.total, self.weights, self.used, self.peak = total, weights, used, weights
        for counter in (self.empty_cache, self.mem_get_info, self.memory_reserved):
            monkeypatch.setattr(torch.cuda, counter.__name__, counter)
        for counter in (self.max_memory_reserved, self.reset_peak_memory_stats):
            monkeypatch.setattr(torch.cuda, counter.__name__, counter)
        self.rehearsed = []

    def rehearse(self, context):
        self.rehearsed.append(context)
        if self.weights + self.used > self.total:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.peak = self.weights + self.used

    def empty_cache(self):
        pass

    def reset_peak_memory_stats(self, device):
        self.peak = self.weights

    def mem_get_info(self, device):
        return int(self.total - self.weights), int(self.total)

    def memory_reserved(self, device):
        return self.weights

    def max_memory_reserved(self, device):
        return self.peak


CUDA = torch.device("cuda")


def test_on_a_gpu_the_default_is_what_is_left_beside_a_rehearsed_step(monkeypatch):
    gpu = FakeGPU(monkeypatch)
    frames = choose_context(FAST, None, 1, CUDA, BF16, gpu.rehearse)
    assert gpu.rehearsed == [6]
    beside = gpu.used - cache_bytes(FAST, 6, 1, BF16)  # the decoder, the step's workspace, the prompt
    assert gpu.weights + beside + cache_bytes(FAST, frames, 1, BF16) <= 0.95 * gpu.total
    assert gpu.weights + beside + cache_bytes(FAST, frames + 1, 1, BF16) > 0.95 * gpu.total


def test_a_gpu_that_cannot_hold_the_model_is_told_in_a_sentence(monkeypatch):
    gpu = FakeGPU(monkeypatch, used=50e9)
    with pytest.raises(ValueError, match="too small for lingbot-world-fast with 2 slots: not even its shortest"):
        choose_context(FAST, None, 2, CUDA, BF16, gpu.rehearse)


def test_a_context_beyond_what_is_free_on_the_gpu_gets_a_sentence(monkeypatch):
    gpu = FakeGPU(monkeypatch)
    with pytest.raises(ValueError, match=r"takes 51\.8 GB with 1 slot, and there are 40\.0 GB; ask for less"):
        choose_context(FAST, 40, 1, CUDA, BF16, gpu.rehearse)
    assert choose_context(FAST, 20, 1, CUDA, BF16, gpu.rehearse) == 20 and gpu.rehearsed == []
