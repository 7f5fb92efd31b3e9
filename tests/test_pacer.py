"""stream/pacer.py: bursts in, an even clock out."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import FakeClock
from hypothesis import given
from hypothesis import strategies as st

from pipeline.chunk import Chunk
from stream.pacer import HURRY, PTS_RATE, Pacer

PERIOD = 1 / 16


@pytest.fixture
def pacer(clock):
    return Pacer(16, capacity=12, clock=clock)


def chunk(first, count=4):
    return Chunk("a.1", first // 4, first, np.zeros((count, 2, 2, 3), np.uint8))


def drain(pacer, clock, count):
    """Fetch as a track does: wait as long as told; what came and when."""
    out = []
    for _ in range(count):
        clock.advance(pacer.delay())
        out.append((pacer.pop(), clock()))
    return out


def gaps(values):
    return np.diff(values).tolist()


def test_a_burst_leaves_evenly_and_its_pts_are_even_too(pacer, clock):
    pacer.put(chunk(0, 12))
    out = drain(pacer, clock, 12)
    assert [paced.frame for paced, _ in out] == list(range(12))
    assert gaps([at for _, at in out]) == pytest.approx([PERIOD] * 11)
    assert gaps([paced.pts for paced, _ in out]) == [PTS_RATE / 16] * 11


def test_the_clock_does_not_drift_when_each_frame_is_fetched_a_little_late(pacer, clock):
    times = []
    for first in range(0, 160, 4):
        pacer.put(chunk(first))
        for _ in range(4):
            clock.advance(pacer.delay())
            times.append((clock(), pacer.pop().pts))
            clock.advance(0.003)
    assert times[-1][0] - times[0][0] == pytest.approx(159 * PERIOD, abs=0.004)
    assert times[-1][1] - times[0][1] == 159 * PTS_RATE / 16
    assert pacer.late == 0


def test_a_late_chunk_moves_the_clock_once_and_is_counted_once(pacer, clock):
    pacer.put(chunk(0))
    before = drain(pacer, clock, 4)
    assert pacer.delay() is None
    clock.advance(PERIOD + 0.2)
    pacer.put(chunk(4))
    after = drain(pacer, clock, 4)
    assert pacer.late == 1
    assert after[0][1] - before[-1][1] == pytest.approx(PERIOD + 0.2)
    assert gaps([at for _, at in after]) == pytest.approx([PERIOD] * 3)
    # The media clock shows the same gap, or the receiver would take the rest for late as well.
    assert after[0][0].pts - before[-1][0].pts == pytest.approx((PERIOD + 0.2) * PTS_RATE, abs=2)


def test_each_late_chunk_is_counted_and_while_it_is_awaited_there_is_no_frame_to_send(pacer, clock):
    pacer.put(chunk(0))
    drain(pacer, clock, 4)
    for number in range(1, 6):
        clock.advance(PERIOD + 0.1)
        assert pacer.delay() is None
        pacer.put(chunk(4 * number))
        drain(pacer, clock, 4)
    assert pacer.late == 5


@given(waits=st.lists(st.floats(0, 1.0), min_size=1, max_size=30), slowness=st.floats(0, 0.01))
def test_whenever_chunks_come_frames_leave_evenly_but_where_the_clock_was_moved(waits, slowness):
    """`waits` are seconds between chunks; each frame is fetched up to `slowness` seconds late."""
    clock = FakeClock()
    pacer, arrives, left = Pacer(16, 1000, clock), 0.0, []
    arrivals = [(arrives := arrives + wait) + clock() for wait in waits]
    for number, at in enumerate([*arrivals, float("inf")]):
        while (delay := pacer.delay()) is not None and clock() + delay <= at:
            clock.advance(delay + slowness)
            left.append(pacer.pop())
        if at < float("inf"):
            clock.now = max(clock.now, at)
            pacer.put(chunk(4 * number))
    steps = np.diff([paced.pts for paced in left]) / PTS_RATE
    assert [paced.frame for paced in left] == list(range(4 * len(waits)))
    assert np.all(steps > PERIOD - 1e-4)
    assert np.sum(steps > PERIOD + 1e-4) == pacer.late
    assert pacer.dropped == 0


def test_a_chunk_that_is_late_by_a_hair_does_not_move_the_clock(pacer, clock):
    pacer.put(chunk(0))
    drain(pacer, clock, 4)
    clock.advance(PERIOD * 1.2)
    pacer.put(chunk(4))
    assert pacer.delay() == 0
    pacer.pop()
    assert pacer.delay() == pytest.approx(PERIOD * 0.8)
    assert pacer.late == 0


def test_a_full_queue_drops_its_oldest_and_counts_them(pacer, clock):
    for first in range(0, 20, 4):
        pacer.put(chunk(first))
    assert len(pacer) == 12 and pacer.dropped == 8
    assert drain(pacer, clock, 1)[0][0].frame == 8


def test_what_waited_for_no_one_does_not_come_out_as_a_burst(pacer, clock):
    pacer.put(chunk(0, 8))
    drain(pacer, clock, 1)
    clock.advance(30)
    assert gaps([at for _, at in drain(pacer, clock, 7)]) == pytest.approx([PERIOD] * 6)
    assert pacer.late == 0


def test_a_flush_forgets_what_waits_and_what_follows_is_not_late(pacer, clock):
    pacer.put(chunk(0))
    drain(pacer, clock, 1)
    pacer.flush()
    assert pacer.delay() is None
    clock.advance(5)
    pacer.put(chunk(0))
    assert pacer.delay() == 0 and pacer.late == 0


def test_after_a_rest_the_next_chunk_is_not_late_and_what_waits_leaves_as_before(pacer, clock):
    pacer.put(chunk(0))
    drain(pacer, clock, 3)
    pacer.rested()
    drain(pacer, clock, 1)
    clock.advance(9)
    pacer.rested()
    pacer.put(chunk(4))
    assert pacer.delay() == 0 and pacer.late == 0
    out = drain(pacer, clock, 4)
    assert gaps([at for _, at in out]) == pytest.approx([PERIOD] * 3)
    clock.advance(9)
    pacer.put(chunk(8))
    assert pacer.late == 1, "this time nobody rested"


def test_a_chunk_in_parts_leaves_as_evenly_as_a_whole_one(pacer, clock):
    pacer.put(chunk(0, 2))
    out = drain(pacer, clock, 1)
    pacer.put(chunk(2, 2))
    out += drain(pacer, clock, 3)
    assert gaps([at for _, at in out]) == pytest.approx([PERIOD] * 3) and pacer.late == 0


def test_for_a_chunk_that_was_begun_early_the_clock_goes_a_little_faster_until_it_has_caught_up(pacer, clock):
    pacer.put(replace(chunk(0, 12), early=0.02))
    drain(pacer, clock, 1)
    foretold = pacer.due_after(10)
    out = drain(pacer, clock, 11)
    steps = gaps([at for _, at in out])
    assert min(steps) == pytest.approx(PERIOD * (1 - HURRY)) and steps[-1] == pytest.approx(PERIOD)
    assert sum(steps) == pytest.approx(10 * PERIOD - 0.02 + HURRY * PERIOD)
    assert out[-1][1] == pytest.approx(foretold) and pacer.late == 0


def test_what_is_early_by_a_hair_changes_no_clock(pacer, clock):
    pacer.put(replace(chunk(0), early=0.005))
    assert gaps([at for _, at in drain(pacer, clock, 4)]) == pytest.approx([PERIOD] * 3)


def test_how_late_chunks_came_in_all_is_known(pacer, clock):
    pacer.put(chunk(0))
    drain(pacer, clock, 4)
    clock.advance(PERIOD + 0.1)
    pacer.put(chunk(4))
    assert pacer.late_seconds == pytest.approx(0.1)


def test_whoever_listens_hears_of_new_frames(pacer):
    heard = []
    pacer.listener = lambda: heard.append(len(pacer))
    pacer.put(chunk(0))
    assert heard == [4]
    assert pacer.lead_seconds == 0.25
