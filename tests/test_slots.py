"""Rows of the batch are given to one session at a time and come back."""

import pytest

from pipeline.chunk import Control, SessionSpec, WorldFull
from pipeline.slots import Slot, Slots


def spec(name: str) -> SessionSpec:
    return SessionSpec(session=name, prompt="a meadow", seed=1)


def slots(count: int = 2) -> tuple[Slots, list[int]]:
    released: list[int] = []
    return Slots(count, released.append), released


def admit(rows: Slots, name: str) -> Slot:
    return rows.admit(spec(name), lambda index: Slot(index, spec(name), steering=None, history=None))


def test_each_session_gets_a_row_of_its_own():
    rows, _ = slots()
    assert {admit(rows, "a").index, admit(rows, "b").index} == {0, 1}


def test_a_full_batch_refuses_and_keeps_who_is_there():
    rows, _ = slots()
    admit(rows, "a"), admit(rows, "b")
    with pytest.raises(WorldFull, match="all 2 places"):
        admit(rows, "c")
    assert [slot.spec.session for slot in rows] == ["a", "b"]


def test_a_session_is_not_admitted_twice():
    rows, _ = slots()
    admit(rows, "a")
    with pytest.raises(ValueError, match="live already"):
        admit(rows, "a")


def test_a_freed_row_is_released_once_and_goes_to_the_next_session():
    rows, released = slots()
    first = admit(rows, "a")
    admit(rows, "b")
    rows.free(first)
    assert released == [0] and admit(rows, "c").index == 0


def test_a_session_that_cannot_be_made_takes_no_row():
    rows, _ = slots(1)

    def fail(index: int) -> Slot:
        raise ValueError("bad picture")

    with pytest.raises(ValueError, match="bad picture"):
        rows.admit(spec("a"), fail)
    assert admit(rows, "b").index == 0


def test_controls_that_wait_for_one_chunk_become_one():
    rows, _ = slots()
    slot = admit(rows, "a")
    slot.receive(Control(1, frozenset("w"), "a desert"))
    slot.receive(Control(2, frozenset("l")))
    assert slot.take() == Control(2, frozenset("l"), "a desert")
    assert slot.take() == Control(2, frozenset("l"))
