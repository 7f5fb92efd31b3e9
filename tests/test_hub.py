"""stream/hub.py: who is live, what the engine is told and what each viewer hears; without sockets or processes."""

import numpy as np
import pytest

from pipeline.chunk import Chunk, Control, Ended, World
from stream import protocol, worker
from stream.hub import MAX_WAITING, PICTURE_SECONDS, Hub

WORLD = World("fake", 160, 96, 16, 2, 4, 4)


class FakeWorker:
    def __init__(self):
        self.commands = []

    def send(self, command):
        self.commands.append(command)

    def of(self, kind):
        return [command for command in self.commands if isinstance(command, kind)]


class Page:
    """One viewer, and the messages that it heard."""

    def __init__(self, hub, prompt="red", seed=5):
        self.hub, self.heard = hub, []
        self.viewer = hub.enter(prompt, seed, self.heard.append)

    def types(self):
        return [message.type for message in self.heard]

    def last(self, kind):
        return [message for message in self.heard if isinstance(message, kind)][-1]

    def says(self, message):
        self.hub.obey(self.viewer, message)

    @property
    def run(self):
        return self.viewer.session.engine_name


@pytest.fixture
def engine():
    return FakeWorker()


@pytest.fixture
def hub(engine, clock):
    made = Hub(engine, clock=clock)
    made.happen(worker.Ready(WORLD, 1, 1))
    return made


def chunk(run, index=0, sequence=0, scene="a scene", unknown=()):
    frames = np.zeros((4, 2, 2, 3), np.uint8)
    return Chunk(run, index, 4 * index, frames, sequence, scene, unknown, {"total": 0.05})


def watch(page, count):
    """Fetch frames as the page's track does."""
    for _ in range(count):
        page.hub._clock.advance(page.viewer.pacer.delay())
        paced = page.viewer.pacer.pop()
        page.hub.took(page.viewer, paced)
        page.hub.sent(page.viewer, paced, paced.pts % 2**32)


def test_a_viewer_is_welcomed_and_live_at_once_with_credit_for_the_first_chunk(hub, engine):
    page = Page(hub)
    assert page.types() == ["welcome", "live"]
    opened, grant = engine.commands
    assert (opened.spec.prompt, opened.spec.seed) == ("red", 5)
    assert grant == worker.Grant(opened.session, 4)


def test_before_the_engine_is_ready_viewers_wait_and_are_told_why(engine, clock):
    hub = Hub(engine, clock=clock)
    page = Page(hub)
    assert page.types() == ["queued"] and "made ready" in page.heard[0].reason
    hub.happen(worker.Ready(WORLD, 1, 1))
    assert page.types() == ["queued", "welcome", "live"]


def test_a_third_viewer_waits_and_enters_when_a_slot_is_free(hub, engine):
    first, _, third, fourth = (Page(hub) for _ in range(4))
    assert third.last(protocol.Queued).place == 1
    assert fourth.last(protocol.Queued).place == 2
    hub.leave(first.viewer)
    assert worker.Close(first.run) in engine.commands
    assert third.last(protocol.Live).slot == 0
    assert fourth.last(protocol.Queued).place == 1
    assert first.types()[-1] == "ended"


def test_a_full_line_takes_no_one_more(hub):
    for _ in range(2 + MAX_WAITING):
        Page(hub)
    with pytest.raises(ValueError, match="try again later"):
        Page(hub)


def test_credit_follows_the_frames_that_leave(hub, engine):
    page = Page(hub)
    hub.happen(chunk(page.run))
    watch(page, 2)
    assert engine.of(worker.Grant)[-2:] == [worker.Grant(page.run, 5), worker.Grant(page.run, 6)]


def test_a_viewer_who_does_not_look_gets_no_more_credit_and_loses_the_slot(hub, engine, clock):
    page, other = Page(hub), Page(hub)
    waiting = Page(hub)
    hub.happen(chunk(other.run))
    hub.happen(chunk(page.run))
    clock.advance(PICTURE_SECONDS)
    watch(other, 1)
    assert len([grant for grant in engine.of(worker.Grant) if grant.session == page.run]) == 1
    clock.advance(0.5)
    hub.tick()
    assert "No picture" in page.last(protocol.Ended).reason
    assert waiting.types()[-1] in ("live", "stats") and "ended" not in other.types()


def test_a_viewer_whom_a_slow_engine_keeps_waiting_keeps_the_slot(hub, clock):
    page = Page(hub)
    for _ in range(100):
        clock.advance(1)
        hub.tick()
    assert "ended" not in page.types()


def test_keys_reach_the_engine_and_are_answered_when_taken_and_when_shown(hub, engine):
    page = Page(hub)
    page.says(protocol.Keys(seq=7, held=("w", "l")))
    assert engine.commands[-1] == worker.Steer(page.run, Control(7, frozenset("wl")))
    assert page.heard[-1] == protocol.Received(seq=7)
    hub.happen(chunk(page.run, 0, 0))
    hub.happen(chunk(page.run, 1, 7))
    watch(page, 8)
    applied = [message for message in page.heard if isinstance(message, protocol.Applied)]
    assert [(one.seq, one.chunk, one.frame) for one in applied] == [(7, 1, 4)]
    assert applied[0].rtp is not None


def test_keys_that_are_not_sent_again_do_not_stick(hub, engine, clock):
    page = Page(hub)
    page.says(protocol.Keys(seq=1, held=("w",)))
    clock.advance(1.1)
    hub.tick()
    assert engine.of(worker.Steer)[-1] == worker.Steer(page.run, Control(1, frozenset()))


def test_a_prompt_goes_on_in_the_same_world_and_its_scene_is_told_once(hub, engine):
    page = Page(hub)
    page.says(protocol.Prompt(seq=2, text="blue"))
    assert engine.commands[-1] == worker.Steer(page.run, Control(2, frozenset(), "blue"))
    for index in range(3):
        hub.happen(chunk(page.run, index, scene="a blue bar", unknown=("zork",)))
    scenes = [message for message in page.heard if isinstance(message, protocol.Scene)]
    assert scenes == [protocol.Scene(text="a blue bar", unknown_words=("zork",))]


def test_a_restart_begins_again_in_the_same_slot_with_what_was_given(hub, engine):
    page = Page(hub)
    page.says(protocol.Prompt(seq=2, text="blue"))
    old = page.run
    hub.happen(chunk(old))
    page.says(protocol.Restart(seq=3, seed=9))
    assert worker.Close(old) in engine.commands and page.run != old
    spec = engine.of(worker.Open)[-1].spec
    assert (spec.prompt, spec.seed) == ("blue", 9)
    assert page.last(protocol.Live) == protocol.Live(slot=0, seed=9, prompt="blue")
    hub.happen(chunk(old, 1))
    assert len(page.viewer.pacer) == 0


def test_when_the_engine_dies_all_wait_and_begin_again_with_their_newest_prompt(hub, engine):
    page, _, third = Page(hub), Page(hub), Page(hub)
    page.says(protocol.Prompt(seq=2, text="blue"))
    hub.happen(worker.Died("killed", again=True))
    assert page.last(protocol.Queued).place == 1 and "starting again" in page.last(protocol.Queued).reason
    assert third.last(protocol.Queued).place == 3
    hub.happen(worker.Ready(WORLD, 1, 1))
    assert page.types()[-1] == "live" and third.types()[-1] == "queued"
    assert engine.of(worker.Open)[-2].spec.prompt == "blue"
    assert page.types().count("welcome") == 1


def test_a_session_that_the_engine_ends_or_refuses_frees_its_slot_and_no_other(hub):
    page, other, third = Page(hub), Page(hub), Page(hub)
    hub.happen(Ended(page.run, "this world broke"))
    assert page.last(protocol.Ended).reason == "this world broke"
    assert third.types()[-1] == "live" and other.types()[-1] == "live"
    hub.happen(worker.Refused(third.run, "no such picture"))
    assert third.last(protocol.Ended).reason == "no such picture"


def test_a_second_hello_is_refused_and_the_session_stays(hub):
    page = Page(hub)
    with pytest.raises(protocol.ProtocolError, match="said hello already"):
        page.says(protocol.Hello(version=1, prompt="blue"))
    assert page.viewer.session.prompt == "red"


def test_stats_tell_the_rate_the_lead_and_the_company(hub, clock):
    page, _, _ = Page(hub), Page(hub), Page(hub)
    for index in range(9):
        hub.happen(chunk(page.run, index))
        watch(page, 4)
    hub.happen(chunk(page.run, 9))
    hub.tick()
    stats = page.last(protocol.Stats)
    assert stats.fps == pytest.approx(16, abs=0.6)
    assert (stats.chunk_ms, stats.lead_ms, stats.viewers, stats.waiting) == (50, 250, 2, 1)


def test_two_viewers_have_different_secrets_and_are_found_by_them(hub):
    first, second = Page(hub), Page(hub)
    tokens = [page.last(protocol.Welcome).token for page in (first, second)]
    assert tokens[0] != tokens[1] and len(tokens[0]) >= 32
    assert hub.find(tokens[1]) is second.viewer
    assert hub.find("guess") is None
