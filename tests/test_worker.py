"""stream/worker.py: credit, the order of commands, and the engine's process through its deaths."""

import mmap
import os
import queue
import signal
import statistics
import time
from dataclasses import replace

import numpy as np
import pytest
from conftest import Stopwatch, shared_memory

import stream.worker
from pipeline.chunk import NO_FRAMES, Chunk, Control, Ended, Session, SessionSpec, World
from stream.logbook import LOGBOOK_BYTES, Logbook
from stream.orders import (
    Close,
    Died,
    Grant,
    Made,
    Open,
    Outbox,
    Placed,
    Progress,
    Ready,
    Refused,
    Resume,
    Return,
    Rewind,
    Snapped,
    Snapshot,
    Steer,
)
from stream.pulse import waited_seconds
from stream.worker import Worker, _Owed


def world(schedule="turns"):
    return World("fake", 160, 96, 16, 2, 4, 4, schedule=schedule)


def test_commands_that_wait_are_joined_and_keep_their_order():
    outbox = Outbox()
    spec = SessionSpec("a", "red", 1)
    outbox.put(Open("a", spec))
    for sequence in range(1000):
        outbox.put(Steer("a", Control(sequence, frozenset("w"), "blue" if sequence == 0 else None)))
        outbox.put(Grant("a", sequence))
    outbox.put(Return(0))
    steer = Steer("a", Control(999, frozenset("w"), "blue"))
    assert outbox.take() == [Open("a", spec), steer, Grant("a", 999), Return(0)]


def test_a_close_takes_the_place_of_what_waits_for_its_session():
    outbox = Outbox()
    outbox.put(Steer("a", Control(1)))
    outbox.put(Steer("b", Control(2)))
    outbox.put(Close("a"))
    assert outbox.take() == [Steer("b", Control(2)), Close("a")]


def test_a_closed_outbox_gives_nothing():
    outbox = Outbox()
    outbox.put(Return(0))
    outbox.close()
    assert outbox.take() == []


def test_an_engine_owes_nothing_while_no_session_has_credit(clock):
    owed = _Owed(clock)
    owed.heard(Ready(world(), 1, 1))
    owed.note(Open("a", SessionSpec("a", "red", 1)))
    clock.advance(3600)
    assert owed.seconds() == 0
    owed.note(Grant("a", 4))
    assert owed.seconds() == 0
    clock.advance(5)
    assert owed.seconds() == 5


def test_a_rewind_takes_the_credit_of_before_away_and_what_is_granted_after_it_stays_behind_it():
    outbox = Outbox()
    outbox.put(Steer("a", Control(3)))
    outbox.put(Grant("a", 100))
    outbox.put(Rewind("a", 2))
    outbox.put(Grant("a", 12))
    outbox.put(Steer("a", Control(3)))
    assert outbox.take() == [Rewind("a", 2), Grant("a", 12), Steer("a", Control(3))]


def made_chunk(session, index):
    return Made(Chunk(session, index, 4 * index, NO_FRAMES), 0, (4, 96, 160, 3))


def test_chunks_on_their_way_while_a_session_is_taken_back_do_not_count_as_made_after_it(clock):
    owed = _Owed(clock)
    owed.heard(Ready(world(), 1, 1))
    owed.note(Open("a", SessionSpec("a", "red", 1)))
    owed.note(Grant("a", 8))
    owed.heard(made_chunk("a", 0))
    owed.note(Rewind("a", 0))
    owed.note(Grant("a", 4))
    owed.heard(made_chunk("a", 1))
    assert owed.replayed == 0 and owed.seconds() == 0
    owed.heard(Placed("a", 0, 0))
    clock.advance(5)
    assert owed.seconds() == 5


def kept(chunks, count):
    """A session of so many chunks of which the latents of the newest are kept."""
    latents = np.zeros((count, 1, 1, 1, 1), np.float32)
    return Session("fake", SessionSpec("a", "red", 1), chunks, 4 * chunks, (), latents[:0], latents)


def test_an_engine_that_makes_a_past_once_more_is_given_time_for_what_it_makes(clock):
    owed = _Owed(clock)
    owed.heard(Ready(replace(world(), resume_chunks=8), 1, 1))
    for chunks, count, again in ((50_000, 8, 8), (50_000, 30, 8), (5, 5, 5), (50, 3, 50)):
        owed.note(Resume("a", kept(chunks, count)))
        assert owed.replayed == again
        owed.heard(Refused("a", "no room"))
        assert owed.replayed == 0
    owed.note(Resume("a", kept(50_000, 8)))
    owed.heard(Placed("a", 50_000, 200_000))
    owed.note(Rewind("a", 40_000))
    assert owed.replayed == 8


class Harness:
    """A worker with the fake engine, and its events in order."""

    def __init__(self, factory="build", hang_seconds=stream.worker.HANG_SECONDS, **options):
        self.events = queue.Queue()
        self.worker = Worker(f"fake_engine:{factory}", options, self.events.put, hang_seconds)
        self.worker.start()

    def next(self, kind, seconds=30.0):
        end = time.monotonic() + seconds
        while True:
            event = self.events.get(timeout=max(0.01, end - time.monotonic()))
            if isinstance(event, kind):
                return event

    def open(self, session, prompt="red", grant=4):
        self.worker.send(Open(session, SessionSpec(session, prompt, 5)))
        self.worker.send(Grant(session, grant))


@pytest.fixture
def harness():
    made = []

    def start(*factory, **options):
        made.append(Harness(*factory, **options))
        return made[-1]

    yield start
    for one in made:
        one.worker.stop()


class BothStopwatch(Stopwatch):
    """One that also stands while the engine waits for a processor, as far as the worker saw it."""

    def __init__(self, looks):
        super().__init__()
        self._looks = looks
        looks.clear()

    @property
    def seconds(self):
        return super().seconds - (self._looks[-1] - self._looks[0] if self._looks else 0.0)


@pytest.fixture
def stopwatch(monkeypatch):
    """Starts a BothStopwatch."""
    looks = []
    monkeypatch.setattr(stream.worker, "waited_seconds", lambda pid: looks.append(waited_seconds(pid)) or looks[-1])
    return lambda: BothStopwatch(looks)


def gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_the_engines_frames_arrive_as_they_were_drawn_and_no_more_than_were_granted(harness):
    one = harness()
    assert one.next(Progress) == Progress(1, 2)
    assert one.next(Ready).world.preset == "fake"
    one.open("a", "red", grant=8)
    first, second = one.next(Chunk), one.next(Chunk)
    assert (first.first_frame, second.first_frame) == (0, 4)
    assert first.frames.shape == (4, 96, 160, 3)
    assert np.array_equal(first.frames[0, 0, 100], (200, 40, 40))
    assert first.frames[0, 0, 6].tolist() == [250] * 3
    with pytest.raises(queue.Empty):
        one.next(Chunk, seconds=0.2)
    one.worker.send(Steer("a", Control(7, frozenset("l"), "blue")))
    one.worker.send(Grant("a", 9))
    third = one.next(Chunk)
    assert third.sequence == 7
    assert np.array_equal(third.frames[0, 0, 100], (40, 40, 200))


def test_what_is_pressed_just_before_a_chunk_must_begin_is_in_it(harness):
    one = harness(seconds=0.1)
    one.next(Ready)
    one.open("a", "red")
    one.next(Chunk)
    found = []
    for number in range(1, 7):  # a busy machine may spoil some
        leaves = time.monotonic() + 0.8
        one.worker.send(Grant("a", 4 + 4 * number, leaves + 4 / 16))
        time.sleep(0.6)
        one.worker.send(Steer("a", Control(6 + number, frozenset("l"))))
        found.append((one.next(Chunk).sequence == 6 + number, time.monotonic() - leaves))
        if found[-1][0] and -0.2 < found[-1][1] < 0.1:
            return
    raise AssertionError(found)


def test_chunks_that_turn_out_slower_begin_earlier_and_are_there_in_time(harness):
    one = harness(seconds=0.1)  # it says that a chunk takes 10 ms
    one.next(Ready)
    one.open("a", "red")
    one.next(Chunk)
    late, leaves = [], time.monotonic() + 0.25
    for number in range(1, 43):
        one.worker.send(Grant("a", 4 + 4 * number, leaves + 4 / 16, sum(max(0.0, each) for each in late)))
        one.next(Chunk)
        late.append(time.monotonic() - leaves)
        leaves = max(leaves, time.monotonic()) + 0.25
        if number >= 14 and -0.15 < statistics.median(late[-7:]) < 0.05:  # or a busy machine held some up
            break
    assert late[0] > 0.03 and -0.15 < statistics.median(late[-7:]) < 0.05, late


def test_the_first_frames_of_a_chunk_are_there_before_its_last_are(harness):
    one = harness(part_seconds=1.0)
    one.next(Ready)
    one.open("a", "red")
    first, at = one.next(Chunk), time.monotonic()
    last = one.next(Chunk)
    assert time.monotonic() - at > 0.2
    assert [(part.index, part.first_frame, len(part.frames), part.more) for part in (first, last)] == [
        (0, 0, 2, True), (0, 2, 2, False),
    ]  # fmt: skip
    one.worker.send(Grant("a", 8))
    assert [one.next(Chunk).first_frame for _ in range(2)] == [4, 6]


def test_a_refused_or_ended_session_leaves_the_others_alone(harness):
    one = harness()
    one.next(Ready)
    one.open("bad", "refuse")
    assert one.next(Refused) == Refused("bad", "this prompt is refused")
    one.open("short", "stop")
    assert one.next(Ended).session == "short"
    one.open("good")
    assert one.next(Chunk).session == "good"


def test_a_chunk_that_turns_out_broken_ends_its_session_alone_and_frees_its_slot(harness):
    one = harness(slots=1)
    one.next(Ready)
    one.open("a", "spoil", grant=4)
    assert one.next(Ended) == Ended("a", "the paint has run")
    one.open("b", "red")
    assert one.next((Chunk, Refused)).session == "b"


def test_a_device_that_breaks_while_frames_leave_is_said_in_words(harness):
    one = harness()
    one.next(Ready)
    one.open("a", "burst")
    died = one.next(Died)
    assert "out of canvas" in died.reason and died.again and died.ours
    one.next(Ready)


def test_an_engine_that_dies_is_replaced_and_leaves_no_process_and_no_shared_memory(harness):
    before = shared_memory()
    one = harness()
    one.next(Ready)
    first = one.worker.pid
    os.kill(first, signal.SIGKILL)
    died = one.next(Died)
    assert died.again and "SIGKILL" in died.reason
    one.next(Ready)
    assert gone(first) and one.worker.pid != first
    one.open("a", "explode")
    assert "out of paint" in one.next(Died).reason
    one.next(Ready)
    second, stopwatch = one.worker.pid, Stopwatch()
    one.worker.stop()
    assert stopwatch.seconds < 1
    assert gone(second)
    assert shared_memory() <= before


@pytest.mark.parametrize("prompt", ["hang", "seize"])
def test_an_engine_that_hangs_over_a_prompt_is_noticed_within_two_seconds_and_replaced(harness, stopwatch, prompt):
    one = harness()
    one.next(Ready)
    one.open("a", "red")
    one.next(Chunk)
    one.worker.send(Steer("a", Control(1, frozenset(), prompt)))
    one.worker.send(Grant("a", 8))
    watch = stopwatch()
    died = one.next(Died)
    assert "did nothing" in died.reason and died.at_work == ("a",)
    assert watch.seconds < 2.2  # with the looks between
    one.next(Ready)


def test_an_engine_whose_next_chunk_does_not_come_is_noticed_within_two_seconds_though_it_is_busy(harness, stopwatch):
    one = harness(spin_at=5)
    one.next(Ready)
    one.open("a", "red", grant=20)
    for _ in range(5):
        one.next(Chunk)
    watch = stopwatch()
    one.worker.send(Grant("a", 24))
    assert "did not answer" in one.next(Died).reason
    assert watch.seconds < 2.2  # with the looks between


def test_an_engine_that_waits_for_a_processor_is_not_taken_for_dead(harness, monkeypatch):
    one = harness(spin_at=5, hang_seconds=0.6)
    one.next(Ready)
    one.open("a", "red", grant=20)
    for _ in range(5):
        one.next(Chunk)
    began = time.monotonic()
    # As a machine counts that gives it a third of a processor.
    monkeypatch.setattr(stream.worker, "waited_seconds", lambda pid: 2 / 3 * (time.monotonic() - began))
    one.worker.send(Grant("a", 24))
    assert "did not answer" in one.next(Died).reason
    assert time.monotonic() - began > 1.2, "twice as long as one that waits for nothing"


def test_a_process_that_cannot_be_started_for_lack_of_something_is_tried_again(harness, monkeypatch):
    one = harness()
    one.next(Ready)
    run, tries = stream.worker._Run, iter([OSError(12, "Cannot allocate memory"), None])

    def start(*arguments):
        if (error := next(tries)) is not None:
            raise error
        return run(*arguments)

    monkeypatch.setattr(stream.worker, "_Run", start)
    os.kill(one.worker.pid, signal.SIGKILL)
    assert "SIGKILL" in one.next(Died).reason
    assert one.next(Died) == Died("the engine's process cannot be started: [Errno 12] Cannot allocate memory", True)
    assert one.next(Ready)


def test_an_engine_gets_nothing_that_was_meant_for_the_one_before_it(harness):
    one = harness(load_seconds=1.0)
    one.next(Progress)
    one.open("ghost")
    one.next(Ready)
    for name in ("a", "b"):
        one.open(name)
    assert {one.next(Chunk).session for _ in range(2)} == {"a", "b"}, "both places were free"


def test_an_engine_that_is_started_again_has_as_many_slots_as_before(harness, tmp_path):
    one = harness("build_fewer", starts=str(tmp_path / "starts"), slots=3)
    assert one.next(Ready).world.slots == 3
    for _ in range(2):
        os.kill(one.worker.pid, signal.SIGKILL)
        again = one.next(Ready)
        assert again.world.slots == 3 and again.blocks == 4


def test_an_engine_at_work_on_a_new_prompt_is_given_time(harness):
    one = harness()
    one.next(Ready)
    one.open("a", "ponder")
    assert one.next((Chunk, Died)).session == "a"


def test_an_engine_that_never_worked_is_not_tried_again_and_says_why(harness):
    one = harness(fail="no weights in that folder")
    assert one.next(Died) == Died("no weights in that folder", again=False, ours=False)


def test_a_worker_stops_within_a_second_while_the_engine_still_loads(harness):
    one = harness(load_seconds=60)
    one.next(Progress)
    pid, stopwatch = one.worker.pid, Stopwatch()
    one.worker.stop()
    assert stopwatch.seconds < 1
    assert gone(pid)


def test_ctrl_c_and_a_stray_sigterm_do_not_break_the_engine(harness):
    one = harness()
    one.next(Ready)
    os.kill(one.worker.pid, signal.SIGINT)
    os.kill(one.worker.pid, signal.SIGTERM)
    one.open("a")
    assert one.next(Chunk).session == "a"


def test_a_resumed_session_goes_on_with_the_very_frames_that_would_have_come(harness):
    one = harness()
    one.next(Ready)
    one.open("a", "red", grant=12)
    one.worker.send(Steer("a", Control(3, frozenset("l"))))
    for _ in range(3):
        one.next(Chunk)
    one.worker.send(Snapshot("a", 7))
    snapped = one.next(Snapped)
    assert (snapped.session, snapped.ticket, snapped.reason) == ("a", 7, "")
    assert (snapped.data.chunk, snapped.data.frame, len(snapped.data.latents)) == (3, 12, 1)
    one.worker.send(Grant("a", 13))
    uninterrupted = one.next(Chunk)
    one.worker.send(Resume("b", snapped.data))
    assert one.next(Placed) == Placed("b", 3, 12)
    one.worker.send(Grant("b", 13))
    resumed = one.next(Chunk)
    assert (resumed.session, resumed.index, resumed.first_frame) == ("b", 3, 12)
    assert np.array_equal(resumed.frames, uninterrupted.frames)
    with pytest.raises(queue.Empty):
        one.next(Chunk, seconds=0.2)


def test_a_session_that_was_taken_back_begins_there_with_new_credit_only(harness):
    one = harness()
    one.next(Ready)
    one.open("a", "red", grant=16)
    frames = [one.next(Chunk).frames for _ in range(4)]
    one.worker.send(Rewind("a", 1))
    assert one.next(Placed) == Placed("a", 1, 4)
    with pytest.raises(queue.Empty):
        one.next(Chunk, seconds=0.2)
    one.worker.send(Grant("a", 5))
    again = one.next(Chunk)
    assert (again.index, again.first_frame) == (1, 4) and np.array_equal(again.frames, frames[1])


def test_what_cannot_be_kept_resumed_or_taken_back_is_said_in_a_sentence(harness):
    one = harness()
    one.next(Ready)
    one.worker.send(Snapshot("nobody", 1))
    assert one.next(Snapped) == Snapped("nobody", 1, None, "nobody cannot be kept")
    one.open("a", "red")
    one.next(Chunk)
    one.worker.send(Snapshot("a", 2))
    strange = replace(one.next(Snapped).data, preset="other")
    one.worker.send(Resume("b", strange))
    assert "this engine runs fake" in one.next(Refused).reason
    one.worker.send(Rewind("a", 9))
    assert "it can go back to 0 up to 1, not 9" in one.next(Ended).reason
    one.open("c")
    assert one.next(Chunk).session == "c"


@pytest.mark.parametrize("prompt", ["explode", "die", "burst", "starve"])
def test_a_death_names_the_session_that_was_at_work_and_no_idle_one(harness, prompt):
    one = harness()
    one.next(Ready)
    one.open("idle", "red")
    one.next(Chunk)
    one.open("guilty", prompt)
    assert one.next(Died).at_work == ("guilty",)


def test_a_death_from_outside_while_no_one_is_drawn_for_names_no_one(harness):
    one = harness()
    one.next(Ready)
    one.open("a", "red")
    one.next(Chunk)
    time.sleep(0.1)
    os.kill(one.worker.pid, signal.SIGKILL)
    assert one.next(Died).at_work == ()


def test_the_logbook_holds_what_has_begun_and_not_ended():
    memory = mmap.mmap(-1, 100 + LOGBOOK_BYTES)
    logbook = Logbook(memory)
    assert logbook.read() == ()
    logbook.begin("a", "b")
    logbook.begin("a")
    logbook.end("a")
    assert Logbook(memory).read() == ("a", "b")
    logbook.end("a", "b")
    assert Logbook(memory).read() == () and memory[:100] == bytes(100)
    logbook.begin(*(f"session-{number}" for number in range(1000)))
    assert len(logbook.read()) > 100
