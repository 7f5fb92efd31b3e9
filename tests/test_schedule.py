"""stream/schedule.py: who makes the next chunk and when, with a clock that the tests turn."""

import numpy as np
import pytest

from pipeline.chunk import Chunk, World
from stream.pacer import Pacer
from stream.schedule import CALM_SECONDS, MOST_GROWTH, Durations, Margin, Plan, first_frame, grant_of

LEAD = 0.02


def world(schedule="turns", seconds=(0.1, 0.12)):
    return World("fake", 160, 96, 16, 2, 4, 4, seconds, schedule)


def credit(schedule="turns", **grants):
    made = Plan(world(schedule))
    for session, frame in grants.items():
        made.open(session)
        made.grant(session, frame)
    return made


def due(plan):
    """The sessions of the next step, [] while it need not begin."""
    step = plan.next()
    return step.sessions if step and step.at <= plan._clock() else []


def test_a_session_without_credit_is_not_due():
    assert due(credit(a=0)) == []
    assert due(credit(a=1)) == ["a"]


def test_a_session_is_due_again_only_when_its_next_frame_is_below_its_grant():
    counting = credit(a=4)
    counting.made("a", 4)
    assert due(counting) == []
    counting.grant("a", 5)
    assert due(counting) == ["a"]


def test_in_turns_the_session_with_the_least_lead_goes_alone_and_first():
    assert due(credit(a=4, b=6)) == ["b"]


def test_in_turns_two_sessions_in_equal_need_alternate():
    counting, order = credit(a=8, b=8), []
    while names := due(counting):
        order += names
        counting.made(names[0], 4)
    assert order == ["a", "b", "a", "b"]


def test_in_a_batch_no_one_is_made_for_when_no_one_is_due():
    counting = credit("batch", a=4)
    counting.made("a", 4)
    assert due(counting) == []


def test_credit_never_sinks_and_ends_with_its_session():
    counting = credit(a=8)
    counting.grant("a", 2)
    assert due(counting) == ["a"]
    counting.close("a")
    counting.grant("a", 100)
    counting.made("a", 4)
    assert due(counting) == []


def test_the_first_chunk_may_be_shorter_than_the_others():
    uneven = World("fake", 160, 96, 16, 2, 12, 9)
    assert [first_frame(uneven, chunk) for chunk in range(3)] == [0, 9, 21]


def test_a_session_that_comes_back_counts_on_from_its_own_frame():
    counting = credit(a=40)
    counting.open("a", 5)
    assert due(counting) == []
    counting.grant("a", 21)
    assert due(counting) == ["a"]


def watched(clock, schedule="turns", lead=LEAD, seconds=(0.1, 0.12), **due):
    """A plan whose sessions have credit for their next chunk, which leaves so many seconds from now."""
    plan = Plan(world(schedule, seconds), lead, clock)
    for session, later in due.items():
        plan.open(session)
        plan.grant(session, 4, clock() + later + 4 / 16)
    return plan


def test_a_chunk_begins_as_late_as_it_can_and_be_there_a_lead_before_its_time(clock):
    plan = watched(clock, a=0.25)
    assert plan.next().at == pytest.approx(clock() + 0.25 - 0.1 - LEAD)
    clock.advance(0.12)
    assert due(plan) == []
    clock.advance(0.02)
    assert due(plan) == ["a"]


def test_what_is_to_leave_at_once_begins_at_once(clock):
    plan = Plan(world(), LEAD, clock)
    plan.open("a")
    plan.grant("a", 4)
    assert due(plan) == ["a"]


def test_no_chunk_begins_beyond_its_credit_however_long_it_takes(clock):
    plan = watched(clock, seconds=(0.6,), a=0.25)
    assert due(plan) == ["a"]
    plan.made("a", 4)
    assert plan.next() is None


def test_slower_chunks_begin_earlier_and_one_slow_one_changes_nothing(clock):
    plan = watched(clock, a=0.5)
    before = plan.next().at
    plan.was_ready("a", 1, 0.4)
    assert plan.next().at == before
    for _ in range(20):
        plan.was_ready("a", 1, 0.2)
    assert plan.next().at == pytest.approx(before - 0.1)


def test_quick_chunks_begin_later_once_the_slow_ones_are_forgotten():
    durations = Durations(0.5)
    for _ in range(40):
        durations.note(0.1)
    assert durations.upper == 0.1


def test_a_late_chunk_makes_the_margin_larger_at_once_and_it_shrinks_slowly(clock):
    plan = watched(clock, a=0.5)
    before = plan.next().at
    plan.grant("a", 4, clock() + 0.75, late=0.03)
    assert plan.next().at == pytest.approx(before - 0.03)
    clock.advance(CALM_SECONDS)
    plan.grant("a", 4, clock() + 0.75, late=0.03)
    assert plan.next().at == pytest.approx(before + CALM_SECONDS - 0.015)


def test_one_late_chunk_adds_little_and_many_add_a_chunk_at_most(clock):
    plan = watched(clock, a=2.0)
    before = plan.next().at
    plan.grant("a", 4, clock() + 2.25, late=0.24)
    assert plan.next().at == pytest.approx(before - MOST_GROWTH * 0.25)
    for number in range(2, 40):
        plan.grant("a", 4, clock() + 2.25, late=0.24 * number)
    assert plan.next().at == pytest.approx(before - 0.25)


def test_a_wait_longer_than_a_chunk_is_not_taken_for_a_late_one(clock):
    plan = watched(clock, a=0.5)
    before = plan.next().at
    plan.grant("a", 4, clock() + 0.75, late=30.0)
    assert plan.next().at == before


def test_a_margin_never_falls_below_the_lead(clock):
    margin = Margin(LEAD, clock)
    margin.grow(0.1, 1.0)
    clock.advance(1000)
    assert margin.seconds == pytest.approx(LEAD)


def test_in_turns_a_chunk_begins_earlier_where_the_one_behind_it_needs_the_engine(clock):
    plan = watched(clock, a=0.25, b=0.29)
    step = plan.next()
    assert step.sessions == ["a"] and step.at == pytest.approx(clock() + 0.29 - 2 * 0.1 - LEAD)
    assert step.early == {"a": pytest.approx(0.06)}
    plan.made("a", 4)
    step = plan.next()
    assert step.sessions == ["b"] and step.at == pytest.approx(clock() + 0.29 - 0.1 - LEAD)


def test_in_turns_chunks_far_enough_apart_begin_as_if_each_were_alone(clock):
    plan = watched(clock, a=0.15, b=0.275)
    for session, due in (("a", 0.15), ("b", 0.275)):
        step = plan.next()
        assert step.sessions == [session] and step.at == pytest.approx(clock() + due - 0.1 - LEAD)
        assert step.early == {session: pytest.approx(0)}
        plan.made(session, 4)


def test_in_turns_the_next_but_one_chunk_counts_as_well(clock):
    """b's chunk must be done before a's next one, which is due 20 ms after it."""
    plan = watched(clock, a=0.2, b=0.43)
    plan.made("a", 4)
    step = plan.next()
    assert step.sessions == ["b"] and step.at == pytest.approx(clock() + 0.45 - 2 * 0.1 - LEAD)


def test_in_turns_a_newcomer_begins_at_once_only_where_no_other_chunk_comes_late_for_it(clock):
    plan = watched(clock, a=0.25)
    plan.open("new")
    plan.grant("new", 4)
    assert due(plan) == ["new"]
    clock.advance(0.05)
    assert plan.next().sessions == ["a"]
    plan.made("a", 4)
    assert due(plan) == ["new"]


def test_in_turns_a_newcomer_begins_after_a_chunk_s_time_however_late_the_others_are(clock):
    plan = watched(clock, seconds=(0.3,), a=-5.0)
    plan.open("new")
    plan.grant("new", 4)
    assert due(plan) == ["a"]
    clock.advance(0.26)
    assert due(plan) == ["new"]


@pytest.mark.parametrize("schedule", ["batch", "parallel"])
def test_together_who_could_not_wait_comes_along_and_is_told_how_early(clock, schedule):
    plan = watched(clock, schedule, a=0.25, b=0.29)
    step = plan.next()
    assert step.sessions == ["a", "b"] and step.at == pytest.approx(clock() + 0.25 - 0.12 - LEAD)
    assert step.early == {"a": 0, "b": pytest.approx(0.04)}


def test_in_a_batch_a_session_that_is_watched_and_within_half_a_chunk_of_its_credit_comes_along(clock):
    plan = watched(clock, "batch", seconds=(0.24, 0.24), a=0.2, b=0.15, c=0.1)
    for session, frames in (("b", 5), ("c", 6)):
        plan.made(session, frames)
    assert due(plan) == ["a", "b"]
    plan.made("a", 4)
    assert due(plan) == []


def test_in_a_batch_no_one_is_drawn_for_beyond_the_credit_who_waits_for_a_viewer_or_is_paused(clock):
    plan = watched(clock, "batch", a=0.0, paused=-1.0)
    plan.open("waits")
    plan.grant("waits", 4)
    for session in ("paused", "waits"):
        plan.made(session, 4)
    assert due(plan) == ["a"]


@pytest.mark.parametrize("schedule", ["batch", "parallel"])
def test_together_who_can_wait_until_the_step_is_done_has_one_of_its_own(clock, schedule):
    plan = watched(clock, schedule, a=0.2, b=0.33)
    assert plan.next().sessions == ["a"]
    assert plan.next().at == pytest.approx(clock() + 0.2 - 0.1 - LEAD)
    clock.advance(0.1)
    plan.made("a", 4)
    assert plan.next().sessions == ["b"]


class Viewer:
    """Frames of one session that leave at their time, by a pacer, and the grants that follow from them."""

    def __init__(self, plan, name, clock, phase):
        self.plan, self.name, self.clock, self.next_frame = plan, name, clock, 0
        self.pacer = Pacer(16, 100, clock)
        self.begins_at, self.early = clock() + phase, []
        plan.open(name)

    def act(self):
        """Let frames leave whose time has come."""
        while self.clock() >= self.begins_at and self.pacer.delay() == 0:
            self.next_frame = self.pacer.pop().frame + 1
            self.grant()

    def grant(self):
        self.plan.grant(*grant_of(self.name, self.next_frame, self.pacer, world(), LEAD))

    def put(self, first, early):
        self.early.append(early)
        self.pacer.put(Chunk(self.name, first // 4, first, np.zeros((4, 2, 2, 3), np.uint8), early=early))


def play(schedule, phases, seconds, chunk_seconds, clock):
    """Some seconds of an engine whose chunks always take as long; the viewers, and when each chunk was begun for."""
    plan = Plan(world(schedule, chunk_seconds), LEAD, clock)
    viewers = {name: Viewer(plan, name, clock, phase) for name, phase in phases.items()}
    for viewer in viewers.values():
        viewer.grant()
    end, free, made = clock() + seconds, clock(), []
    while clock() < end:
        for viewer in viewers.values():
            viewer.act()
        step = plan.next()
        if clock() >= free and step and step.at <= clock():
            free = clock() + chunk_seconds[len(step.sessions) - 1 if schedule != "turns" else 0]
            for name in step.sessions:
                made.append((free, name, step.early[name]))
                plan.made(name, 4)
        for item in [each for each in made if each[0] <= clock()]:
            made.remove(item)
            viewer = viewers[item[1]]
            viewer.put(4 * len(viewer.early), item[2])
        clock.advance(0.001)
    return viewers


@pytest.mark.parametrize(
    ("schedule", "chunk_seconds"), [("turns", (0.1, 0.2)), ("batch", (0.1, 0.15)), ("parallel", (0.14, 0.18))]
)
@pytest.mark.parametrize("phase", [0.0, 0.04, 0.1, 0.16])
def test_clocks_that_are_in_each_others_way_slide_apart_or_together_and_no_chunk_is_late(
    clock, schedule, chunk_seconds, phase
):
    viewers = play(schedule, {"a": 0.0, "b": phase}, 20.0, chunk_seconds, clock)
    for viewer in viewers.values():
        assert viewer.pacer.late_seconds < 0.02 and len(viewer.early) >= 76
        assert max(viewer.early[-20:]) < 0.012, viewer.early
        assert len(viewer.early) <= 83, "no clock goes faster for ever"
