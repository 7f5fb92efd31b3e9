"""stream/pacer.py: bursts in, an even clock out."""

import numpy as np
import pytest

from pipeline.chunk import Chunk
from stream.pacer import PTS_RATE, Pacer

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


def test_whoever_listens_hears_of_new_frames(pacer):
    heard = []
    pacer.listener = lambda: heard.append(len(pacer))
    pacer.put(chunk(0))
    assert heard == [4]
    assert pacer.lead_seconds == 0.25
