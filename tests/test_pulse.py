"""stream/pulse.py: whether a process does anything, and whether it could."""

import os
import threading
import time
import zlib

import pytest

from stream.pulse import Pulse, Silence, waited_seconds


class Counted:
    """Seconds that something counts, set by the test."""

    seconds = 0.0

    def __call__(self):
        return self.seconds


def pass_by(clock, silence, looks, silent=0.0, step=0.25, waited=None, share=0.0):
    """Ask so many times; what counts in the end."""
    for _ in range(looks):
        clock.advance(step)
        silent += step
        if waited:
            waited.seconds += share * step
        counted = silence.counted(silent)
    return counted


def test_silence_counts_in_full_where_nothing_is_in_the_way(clock):
    assert pass_by(clock, Silence(Counted(), 0.25, clock), 8) == 2.0


@pytest.mark.parametrize(("share", "counts"), [(0.5, 1.125), (0.9, 0.425), (1.0, 0.25), (3.0, 0.25)])
def test_time_in_which_its_threads_wait_for_a_processor_does_not_count_from_the_first_look_on(clock, share, counts):
    waited = Counted()
    found = pass_by(clock, Silence(waited, 0.25, clock), 8, waited=waited, share=share)
    assert found == pytest.approx(counts)


def test_a_machine_that_stood_still_as_a_whole_counts_for_two_looks_only(clock):
    assert pass_by(clock, Silence(Counted(), 0.25, clock), 1, step=30.0) == pytest.approx(0.5)


def test_what_it_waited_before_it_owed_anything_is_no_excuse(clock):
    waited = Counted()
    silence = Silence(waited, 0.25, clock)
    for _ in range(40):
        clock.advance(0.25)
        waited.seconds += 0.25
        assert silence.counted(0.0) == 0
    assert pass_by(clock, silence, 8) == 2.0


def test_a_thread_that_ends_takes_its_waiting_along_and_nothing_is_counted_for_it(clock):
    waited = Counted()
    waited.seconds = 5.0
    silence = Silence(waited, 0.25, clock)
    silence.counted(0.0)
    waited.seconds = 1.0
    assert pass_by(clock, silence, 8) == 2.0


def waited_asleep():
    before = waited_seconds(os.getpid())
    time.sleep(0.05)
    return waited_seconds(os.getpid()) - before


def test_threads_that_share_a_processor_wait_and_one_that_sleeps_does_not():
    cores = os.sched_getaffinity(0)
    assert any(waited_asleep() < 0.04 for _ in range(50)), "were sleep counted, it would be 0.05 each time"
    end, before = time.monotonic() + 0.6, waited_seconds(os.getpid())
    threads = [threading.Thread(target=crowd, args=(min(cores), end)) for _ in range(2)]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    assert waited_seconds(os.getpid()) - before > 0.1
    for thread in threads:
        thread.join()


def crowd(core, end):
    """Keep a core busy without the interpreter's lock, beside others who do."""
    os.sched_setaffinity(0, {core})
    data = bytes(1 << 20)
    while time.monotonic() < end:
        zlib.crc32(data)


def test_a_process_that_uses_nothing_for_its_span_stands_still(clock):
    used = Counted()
    pulse = Pulse(used, 1.5, clock)
    found = []
    for look in range(14):
        used.seconds += 0.25 if look < 6 else 0.0
        found.append(pulse.stands_still())
        clock.advance(0.25)
    assert not any(found[:11]) and found[-1]
