"""stream/session.py: a viewer's life, the line and the rate limit, on a clock that the test turns."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.chunk import Control
from stream.session import LIFE, Bucket, Line, Session, State


def line_of(slots, viewers):
    line, sessions = Line(slots), [Session(f"viewer {number}", number) for number in range(viewers)]
    for session in sessions:
        line.join(session)
    return line, sessions


def test_the_first_in_line_are_live_and_the_rest_know_their_place():
    line, (a, b, c, d) = line_of(2, 4)
    assert line.admit() == [a, b]
    assert (a.slot, b.slot) == (0, 1)
    assert (line.place(c), line.place(d)) == (1, 2)
    assert not line.has_room


def test_a_free_slot_goes_to_the_first_in_line():
    line, (a, b, c, d) = line_of(2, 4)
    line.admit()
    line.leave(a)
    assert line.admit() == [c]
    assert c.slot == 0 and line.place(d) == 1 and line.live == [c, b]


def test_leaving_twice_frees_one_slot_once():
    line, (a, b, c) = line_of(1, 3)
    line.admit()
    line.leave(a)
    line.admit()
    line.leave(a)
    assert b.slot == 0 and line.live == [b] and line.waiting == [c]


def test_leaving_the_line_moves_those_behind_forward():
    line, (_, b, c) = line_of(1, 3)
    line.admit()
    line.leave(b)
    assert line.place(c) == 1


def test_when_the_engine_is_gone_the_live_stand_first_in_line_and_enter_again_first():
    line, (a, b, c) = line_of(2, 3)
    line.admit()
    line.resize(0)
    assert line.waiting == [a, b, c] and line.live == [] and not line.has_room
    line.resize(2)
    assert line.admit() == [a, b]


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("event", ["admit", "requeue", "leave"])
def test_only_what_the_table_says_can_happen(state, event):
    session = Session("a", 1, state=state)
    if (state, event) in LIFE:
        session.happen(event)
        assert session.state is LIFE[state, event]
    else:
        with pytest.raises(AssertionError, match=event):
            session.happen(event)


@given(st.lists(st.sampled_from(["join", "leave", "admit", "resize"]) | st.integers(0, 9), max_size=60))
def test_no_slot_is_held_twice_and_no_one_is_lost_whatever_happens(events):
    line, sessions, slots = Line(2), [], 2
    for event in events:
        if event == "join":
            sessions.append(Session("a", 1))
            line.join(sessions[-1])
        elif event == "admit":
            line.admit()
        elif event == "resize":
            slots = (slots + 1) % 4
            line.resize(slots)
        elif isinstance(event, int) and sessions:
            line.leave(sessions[event % len(sessions)])
        present = [session for session in sessions if session.state is not State.GONE]
        held = [session.slot for session in present if session.slot is not None]
        assert len(held) == len(set(held)) <= slots
        assert sorted(map(id, line.live + line.waiting)) == sorted(map(id, present))


def test_keys_that_are_not_sent_again_are_released_after_a_second(clock):
    session = Session("a", 1)
    session.press(1, frozenset("w"), clock())
    clock.advance(0.9)
    session.press(2, frozenset("w"), clock())
    clock.advance(0.9)
    assert session.release_stale(clock()) is None
    clock.advance(0.2)
    assert session.release_stale(clock()) == Control(2, frozenset())
    assert session.release_stale(clock()) is None


def test_a_new_prompt_keeps_the_held_keys_and_an_old_number_does_not_count_back(clock):
    session = Session("a", 1)
    session.press(5, frozenset("w"), clock())
    assert session.change(3, "b") == Control(5, frozenset("w"), "b")


def test_every_run_has_its_own_name_in_the_engine():
    session = Session("a", 1)
    assert session.begin().session != session.begin().session == session.engine_name


def test_a_bucket_lets_through_a_burst_then_the_rate(clock):
    bucket = Bucket(10, 20, clock)
    assert [bucket.take() for _ in range(25)].count(True) == 20
    assert bucket.refused == 5
    clock.advance(0.5)
    assert [bucket.take() for _ in range(25)].count(True) == 5
