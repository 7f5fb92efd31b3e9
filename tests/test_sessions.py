"""Sessions as plain data in the real engine at small width: snapshot, resume, rewind, fork, a new prompt's rebuild."""

import pickle

import numpy as np
import pytest
from test_engine import small_engine, spec

from pipeline.chunk import Control, Ended
from pipeline.engine import Engine

CONTROLS = {
    0: Control(1, frozenset("w")),
    3: Control(2, frozenset("l"), "a desert"),
    5: Control(3, frozenset("wj")),
    9: Control(4, frozenset("d"), "a city at night"),
    11: Control(5, frozenset()),
}
CHUNKS = 16


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


def uninterrupted(**options) -> list[np.ndarray]:
    engine = small_engine(**options)
    engine.open(spec("a"))
    return run(engine, "a", range(CHUNKS))


def difference(some: list[np.ndarray], other: list[np.ndarray]) -> int:
    assert len(some) == len(other)
    return max(int(np.abs(a.astype(int) - b).max()) for a, b in zip(some, other, strict=True))


def same(some: list[np.ndarray], other: list[np.ndarray]) -> bool:
    return len(some) == len(other) and all(map(np.array_equal, some, other))


@pytest.mark.parametrize("change", ["rebuild", "swap"])
@pytest.mark.parametrize("at", [0, 1, 2, 4, 8, 10, 13])
def test_a_resumed_session_goes_on_bit_for_bit_in_another_engine(at, change):
    whole = uninterrupted(prompt_change=change)
    first, second = small_engine(prompt_change=change), small_engine(prompt_change=change)
    first.open(spec("a"))
    begun = run(first, "a", range(at))
    second.resume(pickle.loads(pickle.dumps(first.snapshot("a"))))
    assert same(begun + run(second, "a", range(at, CHUNKS)), whole)
