"""Passes on fixed addresses: on a CPU each "graph" is the same run once more; tests/test_gpu.py has real ones."""

import pytest
import torch
from test_engine import Latents, small_engine, spec, walk

from pipeline.engine import _rehearse
from pipeline.graphs import WARM, Passes, is_steady


class Repeated:
    """A capture that a CPU can do; counts what was captured and replayed."""

    def __init__(self):
        self.captured = self.replayed = 0

    def __call__(self, run):
        self.captured += 1

        def replay():
            self.replayed += 1
            return run().clone()

        return replay


def settled_engine(capture=None, positions=None, **options):
    """Context passes at once, as on a GPU. `positions` is where the sink begins to follow."""
    engine = small_engine(**options)
    if capture is not None:
        engine._run = Passes(engine._model, capture)
    if positions is not None:
        engine._cache._follow_from = positions
    return engine


def run(engine, monkeypatch, chunks=14, stranger_from=None):
    latents = Latents(engine, monkeypatch)
    engine.open(spec("watched"))
    for chunk in range(chunks):
        if chunk == stranger_from:
            engine.open(spec("stranger", "a night city", seed=99))
        walk(engine, "watched", chunk)
        engine.step()
        engine.settle()
    return latents.of("watched")


@pytest.mark.parametrize(
    "options",
    [{}, {"context_pass": "reuse"}, {"schedule": "batch"}, {"cache": "fp8"}, {"attention": "fp8"}],
    ids=str,
)
@pytest.mark.parametrize("positions", [None, 16])
def test_passes_on_fixed_addresses_give_the_same_bits(monkeypatch, options, positions):
    """Also in a batch, behind a new prompt, and where the sink follows its stream."""
    capture = Repeated()
    plain = run(settled_engine(positions=positions, **options), monkeypatch, stranger_from=2)
    fixed = run(settled_engine(capture, positions, **options), monkeypatch, stranger_from=2)
    assert torch.equal(plain, fixed) and capture.replayed > 10


def test_each_slot_and_the_batch_of_both_are_captured_once(monkeypatch):
    turns, batch = Repeated(), Repeated()
    run(settled_engine(turns, schedule="turns"), monkeypatch, stranger_from=0)
    run(settled_engine(batch, schedule="batch"), monkeypatch, stranger_from=0)
    assert (turns.captured, batch.captured) == (2, 1)
    assert batch.replayed == 3 * (14 - 2) - WARM - 1 and turns.replayed == 2 * batch.replayed  # from the third chunk on


def test_only_a_full_window_that_writes_its_whole_chunk_is_steady():
    engine = small_engine()
    cache, preset = engine._cache, engine.preset
    assert not is_steady(cache.view([0], preset.chunk, *preset.token_grid))
    cache.advance([0], 4)
    full = cache.view([0], preset.chunk, *preset.token_grid)
    assert is_steady(full) and not is_steady(full.silent())
    assert not is_steady(cache.past_view(0, 2, preset.chunk, 0, *preset.token_grid))


def test_what_cannot_be_captured_runs_without_and_says_so_once(monkeypatch):
    def refuse(_):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    plain = run(settled_engine(), monkeypatch)
    with pytest.warns(RuntimeWarning, match="without a CUDA graph: operation not permitted when stream") as told:
        refused = run(settled_engine(refuse), monkeypatch)
    assert torch.equal(plain, refused)
    said = [str(each.message) for each in told]  # others are of what earlier tests left open
    assert sum("without a CUDA graph" in each for each in said) == 1


def test_graphs_without_a_gpu_are_refused():
    with pytest.raises(ValueError, match="graphs are for a GPU"):
        small_engine(graphs=True)


@pytest.mark.parametrize(("schedule", "captured"), [("turns", 2), ("batch", 3)])
def test_a_rehearsal_that_shares_out_a_gpus_memory_records_the_graphs_too(monkeypatch, schedule, captured):
    """What they keep lives beside the cache, so a context that fills the rest must leave room for it."""
    capture = Repeated()
    engine = settled_engine(capture, schedule=schedule)
    step = engine.step
    monkeypatch.setattr(engine, "step", lambda *sessions: (step(*sessions), engine.settle())[0])
    _rehearse(engine)
    assert capture.captured == captured
