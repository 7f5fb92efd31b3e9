"""stream/session.py: a viewer's life, the line and the rate limit, on a clock that the test turns."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import chunk
from pipeline.chunk import Control, SessionSpec
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
@pytest.mark.parametrize("event", sorted({event for _, event in LIFE}))
def test_only_what_the_table_says_can_happen(state, event):
    session = Session("a", 1, state=state)
    if (state, event) in LIFE:
        session.happen(event)
        assert session.state is LIFE[state, event].then
    else:
        with pytest.raises(AssertionError, match=event):
            session.happen(event)


EVENTS = ["join", "admit", "resize", "lose", "return", "park", "leave", "yield", "expire", "data"]


class World:
    """A line to which anything happens that LIFE allows, and what must be true of it whatever does."""

    def __init__(self):
        self.line, self.slots = Line(2), 2
        self.sessions, self.order = [], []

    def happen(self, event, number):
        session = self.sessions[number % len(self.sessions)] if self.sessions else None
        if event == "join":
            self.sessions.append(Session("a", 1))
            self._line_up(self.sessions[-1])
        elif event == "admit":
            for each in self.line.admit():
                self.order.remove(each)
        elif event == "resize":
            self.slots = number % 4
            self.order[:0] = self.line.live
            self.line.resize(self.slots)
        elif session and event == "data":
            session.awaits_data = not session.awaits_data
        elif session and (session.state, event) in LIFE:
            self._happen_to(session, event)

    def _happen_to(self, session, event):
        if event == "return" and session.state is State.PARKED:
            self._line_up(session)
        elif event == "lose":
            self.line.lose(session, 1.0)
        elif event == "expire":
            session.happen("expire")
        else:
            if event in ("park", "leave", "yield") and session in self.order:
                self.order.remove(session)
            if event == "yield":
                self.order.append(session)
            getattr(self.line, {"yield": "yield_", "return": "return_"}.get(event, event))(session)

    def _line_up(self, session):
        self.line.join(session)
        self.order.append(session)

    def check(self):
        live = [session for session in self.sessions if session.state is State.LIVE]
        slots = [session.slot for session in live]
        assert len(set(slots)) == len(slots) <= self.slots, "a slot is held once"
        assert all(0 <= slot < self.slots for slot in slots)
        assert self.line.live == sorted(live, key=lambda session: session.slot), "no slot is lost"
        assert all(session.slot is None for session in self.sessions if session not in live)
        assert self.line.waiting == self.order, "the line keeps its order"
        assert {id(each) for each in self.order} == {
            id(session) for session in self.sessions if session.state is State.QUEUED
        }, "who is queued is in line, once"


@given(st.lists(st.tuples(st.sampled_from(EVENTS), st.integers(0, 11)), max_size=80))
def test_whatever_happens_no_slot_is_lost_or_held_twice_and_the_line_keeps_its_order(events):
    world = World()
    for event, number in events:
        world.happen(event, number)
        world.check()
    for session in world.sessions:
        world.line.leave(session) if session.state is not State.GONE else None
        world.order = [each for each in world.order if each is not session]
    newcomers = [Session("b", 2) for _ in range(world.slots)]
    for session in newcomers:
        world.line.join(session)
    assert world.line.admit() == newcomers, "when all have left, all slots are free"


def test_who_is_not_there_keeps_the_place_but_is_passed_over():
    line, (a, b, c) = line_of(1, 3)
    line.lose(a, 1.0)
    assert line.admit() == [b] and line.place(a) == 1
    line.return_(a)
    line.leave(b)
    assert line.admit() == [a] and line.waiting == [c]


def test_a_session_whose_turn_is_over_stands_last_and_a_parked_one_comes_back_last():
    line, (a, b, c) = line_of(1, 3)
    line.admit()
    line.yield_(a)
    assert line.waiting == [b, c, a] and line.live == []
    line.park(b)
    line.join(b)
    assert line.waiting == [c, a, b]


def data(*events, waiting=None, held=Control(4)):  # noqa: B008  a frozen value
    empty = np.empty((0, 1, 1, 1, 1), np.float32)
    return chunk.Session("fake", SessionSpec("a", "red", 7), 5, 20, events, empty, empty, held, waiting)


def test_a_parked_session_knows_its_seed_its_newest_prompt_and_its_number():
    session = Session.parked("secret", data(chunk.Event(2, prompt="green"), waiting=Control(6, prompt="blue")))
    assert (session.state, session.token, session.seed) == (State.PARKED, "secret", 7)
    assert (session.prompt, session.sequence) == ("blue", 6)
    assert Session.parked("secret", data(chunk.Event(2, prompt="green"), chunk.Event(3))).prompt == "green"


def test_a_session_that_goes_on_is_told_the_prompt_that_came_after_it_was_kept_and_no_older_one():
    session = Session.parked("secret", data())
    assert session.resume_control() == Control(4)
    session.change(5, "blue")
    assert session.resume_control() == Control(5, prompt="blue")
    session.data = data(held=Control(5))
    assert session.resume_control() == Control(5)


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


def test_a_flood_that_goes_on_is_known_as_one_and_who_is_a_little_too_quick_is_not(clock):
    def sends(each_second, seconds):
        bucket = Bucket(60, 120, clock)
        for _ in range(each_second * seconds):
            clock.advance(1 / each_second)
            bucket.take()
        return bucket.refused

    assert sends(2000, 1) > 600
    assert sends(70, 60) < 10
