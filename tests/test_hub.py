"""stream/hub.py: who is live, what the engine is told and what each viewer hears; without sockets or processes."""

import contextlib
from dataclasses import replace

import numpy as np
import pytest
from conftest import FakeClock
from hypothesis import given
from hypothesis import strategies as st

from pipeline.chunk import Chunk, Control, Ended, Session, SessionSpec, World
from stream import protocol, worker
from stream.audience import SPECTATORS
from stream.fairness import ASKED_SECONDS, Fairness
from stream.hub import (
    FORGIVEN_SECONDS,
    GRACE_SECONDS,
    MAX_WAITING,
    PICTURE_SECONDS,
    STATS_SECONDS,
    Hub,
)
from stream.runs import KEEP_BYTES_A_SECOND, KEEP_SECONDS
from stream.session import State
from stream.upload import name_of
from stream.viewer import RESTARTS_AT_ONCE

WORLD = World("fake", 160, 96, 16, 2, 4, 4)


class FakeWorker:
    def __init__(self):
        self.commands = []

    def send(self, command):
        self.commands.append(command)

    def of(self, kind):
        return [command for command in self.commands if isinstance(command, kind)]


class Drawer(dict):
    """An archive in memory."""

    count = bytes = swept = 0
    put = dict.__setitem__

    def remove(self, token):
        self.pop(token, None)

    def sweep(self):
        self.swept += 1


class Page:
    """One viewer, and the messages that it heard."""

    def __init__(self, hub, prompt="red", seed=5):
        self.hub, self.heard = hub, []
        self.viewer = hub.enter(prompt, seed, self.hear)

    def hear(self, message):
        self.heard.append(message)

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
def drawer():
    return Drawer()


@pytest.fixture
def hub(engine, clock, drawer):
    return open_hub(engine, clock, drawer)


def open_hub(engine, clock, drawer, **limits):
    made = Hub(engine, clock=clock, archive=drawer, fairness=Fairness(**limits))
    made.happen(worker.Ready(WORLD, 1, 1))
    return made


def data(chunk=3, sequence=0, **changes):
    latents = np.zeros((min(chunk, 1), 1, 1, 1, 1), np.float32)
    spec = SessionSpec("a", "red", 5)
    return Session("fake", spec, chunk, 4 * chunk, (), latents[:0], latents, Control(sequence), **changes)


def snap(hub, engine, kept):
    """The engine answers the last snapshot asked for."""
    asked = engine.of(worker.Snapshot)[-1]
    hub.happen(worker.Snapped(asked.session, asked.ticket, kept))


def pass_time(hub, clock, seconds):
    """Time passes with the hub's ticks in it; no engine answers, no one fetches."""
    for _ in range(round(seconds * 4)):
        clock.advance(0.25)
        hub.tick()


def chunk(run, index=0, sequence=0, scene="a scene", unknown=(), guessed=()):
    frames = np.zeros((4, 2, 2, 3), np.uint8)
    return Chunk(run, index, 4 * index, frames, sequence, scene, unknown, {"total": 0.05}, guessed)


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


def test_a_third_viewer_waits_and_enters_when_a_slot_is_free(hub, engine, clock):
    first, _, third, fourth = (Page(hub) for _ in range(4))
    assert third.last(protocol.Queued).place == 1
    assert fourth.last(protocol.Queued).place == 2
    hub.leave(first.viewer)
    assert worker.Close(first.run) in engine.commands
    assert third.last(protocol.Live).slot == 0
    assert first.types()[-1] == "ended"
    pass_time(hub, clock, 1)
    assert fourth.last(protocol.Queued).place == 1


def test_who_joins_the_line_hears_at_once_and_all_others_of_many_changes_once_a_second(hub, clock):
    pages = [Page(hub) for _ in range(2 + MAX_WAITING)]
    waiting = pages[2:]
    assert [page.last(protocol.Queued).place for page in waiting] == list(range(1, MAX_WAITING + 1))
    assert sum(page.types().count("queued") for page in waiting) == MAX_WAITING, "no one is told again for each other"
    for page in waiting[:50]:
        hub.leave(page.viewer)
    pass_time(hub, clock, 1)
    assert [page.last(protocol.Queued).place for page in waiting[50:]] == list(range(1, 51))
    assert all(page.types().count("queued") <= 3 for page in waiting)


def test_a_full_line_takes_no_one_more(hub):
    for _ in range(2 + MAX_WAITING):
        Page(hub)
    with pytest.raises(ValueError, match="try again later"):
        Page(hub)


def test_credit_follows_the_frames_that_leave_and_says_when_the_next_ones_do(hub, engine, clock):
    page = Page(hub)
    hub.happen(chunk(page.run))
    watch(page, 2)
    at = clock() + 1 / 16  # when frame 2 leaves; a chunk and the lead are four frames and one
    assert engine.of(worker.Grant)[-2:] == [
        worker.Grant(page.run, 6, at + 4 / 16),
        worker.Grant(page.run, 7, at + 5 / 16),
    ]


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


def test_words_that_were_guessed_at_are_told_with_what_they_were_taken_for(hub):
    page = Page(hub)
    hub.happen(chunk(page.run, guessed=(("sequoia", "pines"),)))
    assert page.last(protocol.Scene) == protocol.Scene(
        text="a scene", unknown_words=(), guessed_words=(("sequoia", "pines"),)
    )


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


def test_a_kept_world_that_the_engine_refuses_stays_kept(hub, drawer):
    heard = []
    viewer = hub.resume("token", data(), heard.append)
    hub.happen(worker.Refused(viewer.session.engine_name, "it is of another preset"))
    assert heard[-1] == protocol.Parked(reason="it is of another preset")
    assert drawer["token"].chunk == 3 and hub.find("token") is None and hub.has_room


def test_a_world_begins_again_a_few_times_in_a_row_and_then_less_often(hub, clock):
    page = Page(hub)
    for number in range(1, RESTARTS_AT_ONCE + 1):
        page.says(protocol.Restart(seq=number))
    run = page.run
    with pytest.raises(protocol.ProtocolError, match="5 times in a row, then every 2 seconds"):
        page.says(protocol.Restart(seq=9))
    assert page.run == run
    clock.advance(2)
    page.says(protocol.Restart(seq=10))
    assert page.run != run


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


# Who was lost comes back.


def test_a_lost_viewer_who_comes_back_in_time_has_the_same_slot_and_the_same_run(hub, engine, clock):
    page, waiting = Page(hub), [Page(hub), Page(hub)]
    hub.happen(chunk(page.run))
    watch(page, 2)
    run = page.run
    hub.lose(page.viewer, page.hear)
    pass_time(hub, clock, GRACE_SECONDS - 1)
    again = []
    hub.return_(hub.find(page.viewer.session.token), again.append)
    assert [message.type for message in again] == ["welcome", "live", "scene"] and again[1].slot == 0
    assert page.run == run and len(page.viewer.pacer) == 2, "the frames that waited are still there"
    pass_time(hub, clock, 2)
    assert len(engine.of(worker.Open)) == 2 and waiting[1].types()[-1] == "queued"


def test_a_lost_viewer_is_parked_after_the_grace_and_the_next_one_enters(hub, engine, clock, drawer):
    page, _, third = Page(hub), Page(hub), Page(hub)
    token = page.viewer.session.token
    hub.happen(chunk(page.run))
    hub.lose(page.viewer, page.hear)
    pass_time(hub, clock, GRACE_SECONDS + 0.5)
    assert [type(one) for one in engine.commands if one[0] == page.run][-2:] == [worker.Snapshot, worker.Close]
    assert third.last(protocol.Live).slot == 0 and token not in drawer
    snap(hub, engine, data(3, 7))
    assert drawer[token].chunk == 3 and hub.find(token) is None and "parked" not in page.types()


def test_a_parked_session_goes_on_with_its_next_frame_its_prompt_and_its_numbers(hub, engine):
    heard = []
    viewer = hub.resume("secret", data(3, 7), heard.append)
    assert [message.type for message in heard] == ["welcome", "live"]
    assert (heard[0].token, heard[0].seq, heard[1].prompt, heard[1].seed) == ("secret", 7, "red", 5)
    name = viewer.session.engine_name
    resumed, steer, grant = engine.commands
    assert (resumed.session, resumed.data.chunk) == (name, 3)
    assert steer == worker.Steer(name, Control(7)) and grant == worker.Grant(name, 16)


def test_who_comes_back_while_the_session_is_on_its_way_to_the_disk_goes_on_with_it(hub, engine, clock):
    page = Page(hub)
    hub.happen(chunk(page.run))
    hub.lose(page.viewer, page.hear)
    pass_time(hub, clock, GRACE_SECONDS + 0.5)
    again = []
    hub.return_(hub.find(page.viewer.session.token), again.append)
    assert again[-1].type == "queued" and not engine.of(worker.Resume)
    snap(hub, engine, data(3))
    assert again[-1].type == "live" and engine.of(worker.Resume)[0].data.chunk == 3


def test_who_is_lost_in_line_is_passed_over_and_then_gone(hub, clock, drawer):
    first, _, third, fourth = (Page(hub) for _ in range(4))
    hub.lose(third.viewer, third.hear)
    hub.leave(first.viewer)
    assert fourth.types()[-1] == "live"
    pass_time(hub, clock, GRACE_SECONDS + 0.5)
    assert hub.find(third.viewer.session.token) is None and not drawer


def test_a_second_connection_takes_a_session_over_and_the_first_ones_end_does_not_touch_it(hub, clock):
    page, again = Page(hub), []
    hub.return_(page.viewer, again.append)
    assert "another connection" in page.last(protocol.Ended).reason
    hub.lose(page.viewer, page.hear)
    pass_time(hub, clock, GRACE_SECONDS + 1)
    assert page.viewer.session.state is State.LIVE and again[-1].type == "stats"


def test_a_parked_viewer_is_told_and_gone_for_good_when_it_left(hub, engine, drawer):
    page, other = Page(hub), Page(hub)
    page.says(protocol.Park())
    assert page.types()[-1] == "parked"
    snap(hub, engine, data())
    assert page.viewer.session.token in drawer
    drawer.put(other.viewer.session.token, data())
    other.says(protocol.Leave())
    assert list(drawer) == [page.viewer.session.token]


def test_a_world_that_is_parked_twice_is_parked(hub, engine, drawer):
    page = Page(hub)
    page.says(protocol.Park())
    page.says(protocol.Park())
    snap(hub, engine, data())
    assert list(drawer) == [page.viewer.session.token]


def test_the_servers_end_waits_for_worlds_on_their_way_to_the_disk(hub, engine, drawer):
    page, kept = Page(hub), []
    page.says(protocol.Park())
    assert hub.drain("The server is closing.", kept.append) == 1
    snap(hub, engine, data())
    hub.close("The server is closing.")
    assert len(kept) == 1 and list(drawer) == [page.viewer.session.token]


def test_who_only_fetches_the_picture_is_there_and_outlives_the_engine(hub):
    viewer = hub.begin("red", 5)
    hub.look(viewer)
    hub.happen(worker.Died("killed", again=True))
    hub.happen(worker.Ready(WORLD, 1, 1))
    assert viewer.session.state is State.LIVE and viewer.session.lost_at is None
    hub.look_away(viewer)
    assert viewer.session.lost_at is not None


def test_a_mistake_over_one_viewer_is_none_of_the_others_affair(hub, clock, monkeypatch, caplog):
    broken, other = Page(hub), Page(hub)

    def release(viewer, now):
        assert viewer is not broken.viewer

    monkeypatch.setattr(hub._steering, "release_stale", release)
    hub.lose(other.viewer, other.hear)
    pass_time(hub, clock, GRACE_SECONDS + 1)
    assert other.viewer.session.state is not State.LIVE and "cannot be seen to" in caplog.text


def test_a_server_that_closes_keeps_what_it_has_of_each_session(hub, engine, clock, drawer):
    page, _ = Page(hub), Page(hub)
    hub.happen(chunk(page.run))
    pass_time(hub, clock, KEEP_SECONDS)
    snap(hub, engine, data(1))
    hub.close("The server is closing.")
    assert list(drawer) == [page.viewer.session.token] and page.last(protocol.Parked).by_itself


def test_time_goes_on_after_the_close_while_what_was_kept_is_put_away(hub, engine, clock):
    live, _, waiting = Page(hub), Page(hub), Page(hub)
    for page in (live, waiting):
        page.viewer.session.data = data(1)
    hub.close("The server is closing.")
    pass_time(hub, clock, 2 * STATS_SECONDS)
    hub.happen(chunk(live.run))
    assert live.types()[-1] == waiting.types()[-1] == "parked"


# The engine dies.


def test_after_a_death_sessions_go_on_from_what_was_last_kept_with_the_prompt_that_came_since(hub, engine, clock):
    page = Page(hub)
    hub.happen(chunk(page.run, 0))
    pass_time(hub, clock, KEEP_SECONDS)
    snap(hub, engine, data(1, 0))
    page.says(protocol.Prompt(seq=2, text="blue"))
    hub.happen(worker.Died("killed", again=True))
    assert page.last(protocol.Queued).restoring
    hub.happen(worker.Ready(WORLD, 1, 1))
    resumed, steer, grant = engine.commands[-3:]
    assert (resumed.session, resumed.data.chunk) == (page.run, 1)
    assert steer.control == Control(2, frozenset(), "blue") and grant.frame == 8
    assert page.last(protocol.Live).prompt == "blue"


def test_a_world_that_stands_still_is_not_kept_again(hub, engine, clock):
    page = Page(hub)
    hub.happen(chunk(page.run, 0))
    pass_time(hub, clock, 5 * KEEP_SECONDS)
    assert len(engine.of(worker.Snapshot)) == 1
    assert page.viewer.session.state is State.LIVE


def test_a_world_with_a_long_memory_is_kept_less_often(hub, engine, clock):
    page = Page(hub)
    for index in range(8):
        hub.happen(chunk(page.run, index))
        watch(page, 4)
        pass_time(hub, clock, KEEP_SECONDS)
        if index == 0:
            large = np.zeros((1, 4 * KEEP_BYTES_A_SECOND, 1, 1, 1), np.float32)
            snap(hub, engine, replace(data(1), latents=large, first=large[:0]))
    assert len(engine.of(worker.Snapshot)) == 2


def die_at_work(hub, *pages):
    hub.happen(worker.Died("out of memory", True, True, tuple(page.run for page in pages)))
    hub.happen(worker.Ready(WORLD, 1, 1))


def test_a_session_that_breaks_the_engine_twice_is_ended_and_the_others_go_on(hub, clock):
    guilty, other = Page(hub), Page(hub)
    die_at_work(hub, guilty, other)
    assert (guilty.types()[-1], other.types()[-1]) == ("live", "queued"), "it comes back alone"
    die_at_work(hub, guilty)
    assert "broke the engine twice: out of memory" in guilty.last(protocol.Ended).reason
    assert other.types()[-1] == "live"


def test_who_came_back_alone_is_to_blame_and_not_those_beside_it(hub):
    innocent, guilty = Page(hub), Page(hub)
    die_at_work(hub, innocent, guilty)
    hub.happen(chunk(innocent.run))
    assert guilty.types()[-1] == "live", "the first one made a chunk, so the next may come"
    die_at_work(hub, innocent, guilty)
    assert guilty.types()[-1] == "ended" and innocent.types()[-1] == "live"


def test_a_death_is_forgiven_after_a_minute(hub, clock):
    page = Page(hub)
    die_at_work(hub, page)
    pass_time(hub, clock, FORGIVEN_SECONDS + 1)
    die_at_work(hub, page)
    assert page.types()[-1] == "live"


# Pause and rewind.


def test_a_chunk_in_parts_counts_once_and_can_be_seen_from_its_first_part_on(hub):
    page = Page(hub)
    whole = chunk(page.run)
    hub.happen(replace(whole, frames=whole.frames[:2], more=True, seconds={}))
    watch(page, 1)
    assert page.viewer.made == 0 and page.viewer.next_frame == 1
    hub.happen(replace(whole, frames=whole.frames[2:], first_frame=2))
    watch(page, 3)
    assert page.viewer.made == 1 and page.viewer.next_frame == 4
    assert "chunkcast_chunks_total 1.0" in hub.metrics.text().decode()


def test_a_paused_world_gets_no_credit_and_says_with_which_chunk_it_stops(hub, engine, clock):
    page = Page(hub)
    hub.happen(chunk(page.run))
    watch(page, 2)
    page.says(protocol.Pause(seq=3))
    assert page.heard[-2:] == [protocol.Received(seq=3), protocol.Paused(seq=3, chunk=2)]
    grants = len(engine.of(worker.Grant))
    watch(page, 2)
    pass_time(hub, clock, 2 * PICTURE_SECONDS)
    assert len(engine.of(worker.Grant)) == grants and page.viewer.session.state is State.LIVE
    page.says(protocol.Unpause(seq=4))
    steer, grant = engine.commands[-2:]
    assert steer == worker.Steer(page.run, Control(4))
    assert (grant.session, grant.frame) == (page.run, 9) and grant.at < clock(), "it has waited long enough"


def test_a_paused_world_comes_back_from_a_death_paused_and_says_so(hub, engine):
    page = Page(hub)
    hub.happen(chunk(page.run))
    watch(page, 4)
    page.says(protocol.Pause(seq=3))
    hub.happen(worker.Died("killed", again=True))
    grants = len(engine.of(worker.Grant))
    hub.happen(worker.Ready(WORLD, 1, 1))
    assert page.types()[-2:] == ["live", "paused"] and len(engine.of(worker.Grant)) == grants
    page.says(protocol.Unpause(seq=4))
    assert len(engine.of(worker.Grant)) == grants + 1


def test_what_a_kept_world_has_forgotten_is_not_made_once_more(hub):
    hub.resume("token", data(chunk=50), lambda message: None)
    viewer = hub.find("token")
    with pytest.raises(protocol.ProtocolError, match="does not remember what was before it was put away"):
        hub.obey(viewer, protocol.Rewind(seq=5, chunk=20))
    hub.obey(viewer, protocol.Rewind(seq=6, chunk=49))


def test_a_rewind_forgets_what_waits_and_shows_what_comes_after_it_only(hub, engine):
    page = Page(hub)
    for index in range(3):
        hub.happen(chunk(page.run, index))
        watch(page, 3)
    page.says(protocol.Rewind(seq=5, chunk=1))
    assert page.heard[-1] == protocol.Received(seq=5) and len(page.viewer.pacer) == 0
    rewind, steer, grant = engine.commands[-3:]
    assert rewind == worker.Rewind(page.run, 1) and grant == worker.Grant(page.run, 8)
    assert steer == worker.Steer(page.run, Control(5))
    hub.happen(chunk(page.run, 3))
    assert len(page.viewer.pacer) == 0, "it was on its way"
    hub.happen(worker.Placed(page.run, 1, 4))
    hub.happen(chunk(page.run, 1, sequence=5))
    watch(page, 1)
    assert page.last(protocol.Applied).chunk == 1 and engine.of(worker.Grant)[-1].frame == 10


def test_a_rewind_to_what_has_not_been_and_one_too_many_are_refused_with_what_would_be_right(hub):
    page = Page(hub)
    hub.happen(chunk(page.run))
    with pytest.raises(protocol.ProtocolError, match="0 up to 1, not 2"):
        page.says(protocol.Rewind(seq=1, chunk=2))
    with pytest.raises(protocol.ProtocolError, match="3 times in a row") as refused:
        for seq in range(2, 10):
            page.says(protocol.Rewind(seq=seq, chunk=0))
            hub.happen(worker.Placed(page.run, 0, 0))
    assert refused.value.seq == 5
    waiting = [Page(hub), Page(hub)][-1]
    for message in (protocol.Rewind(seq=1, chunk=0), protocol.Pause(seq=1)):
        with pytest.raises(protocol.ProtocolError, match="only a world that is live"):
            waiting.says(message)


# When others wait.


def test_a_turn_ends_only_when_others_wait_and_the_world_goes_on_in_its_next_turn(engine, clock, drawer):
    hub = open_hub(engine, clock, drawer, turn=30)
    hub.happen(worker.Ready(replace(WORLD, slots=1), 1, 1))
    page = Page(hub)
    pass_time(hub, clock, 40)
    assert page.viewer.session.state is State.LIVE
    other = Page(hub)
    assert other.last(protocol.Queued).wait_seconds == 0
    pass_time(hub, clock, 0.25)
    assert other.types()[-1] == "live"
    assert "turn is over" in page.last(protocol.Queued).reason and page.last(protocol.Queued).wait_seconds == 30
    snap(hub, engine, data(2))
    pass_time(hub, clock, 30.25)
    assert page.last(protocol.Live) and engine.of(worker.Resume)[0].data.chunk == 2
    assert other.last(protocol.Queued).place == 1


def test_without_a_limit_no_turn_ends_and_the_wait_is_told_from_the_mean_stay(hub, clock):
    page, _, third = Page(hub), Page(hub), Page(hub)
    assert third.last(protocol.Queued).wait_seconds is None
    pass_time(hub, clock, 100)
    fourth = Page(hub)
    hub.leave(page.viewer)
    assert third.types()[-1] == "live"
    pass_time(hub, clock, 1)
    assert fourth.last(protocol.Queued).wait_seconds == 50


def test_an_idle_viewer_is_asked_and_then_parked_while_others_wait(engine, clock, drawer):
    hub = open_hub(engine, clock, drawer, idle=60)
    idle, busy = Page(hub), Page(hub)
    pass_time(hub, clock, 100)
    assert "asked" not in idle.types()
    Page(hub)
    pass_time(hub, clock, 1)
    assert idle.last(protocol.Asked).seconds == ASKED_SECONDS
    busy.says(protocol.Keys(seq=1, held=("w",)))
    pass_time(hub, clock, ASKED_SECONDS + 1)
    assert idle.types()[-1] == "parked" and busy.viewer.session.state is State.LIVE


def test_who_was_asked_for_one_who_has_left_is_asked_anew_for_the_next(engine, clock, drawer):
    hub = open_hub(engine, clock, drawer, idle=60)
    idle, busy = Page(hub), Page(hub)
    pass_time(hub, clock, 100)
    busy.says(protocol.Keys(seq=1, held=("w",)))
    first = Page(hub)
    pass_time(hub, clock, 1)
    assert "asked" in idle.types()
    hub.leave(first.viewer)
    pass_time(hub, clock, 2 * ASKED_SECONDS)
    idle.heard.clear()
    Page(hub)
    pass_time(hub, clock, ASKED_SECONDS - 1)
    assert "asked" in idle.types() and "parked" not in idle.types()
    pass_time(hub, clock, 2)
    assert idle.types()[-1] == "parked"


def test_asking_for_a_session_keeps_its_place_in_line_and_no_slot(hub, clock):
    busy = Page(hub), Page(hub)
    waits = hub.begin("red", 5)
    for _ in range(3):
        pass_time(hub, clock, GRACE_SECONDS - 1)
        hub.poll(waits)
        assert waits.session.state is State.QUEUED
    hub.leave(busy[0].viewer)
    hub.poll(waits)
    assert waits.session.state is State.LIVE
    pass_time(hub, clock, GRACE_SECONDS - 1)
    hub.poll(waits)
    assert waits.session.state is State.LIVE
    pass_time(hub, clock, 2)
    assert waits.session.state is State.PARKED, "no picture was fetched"


# Whatever happens.


class Model(FakeWorker):
    """An engine that counts: it has room for the world's slots, and it answers what it is asked when told."""

    def __init__(self, slots):
        super().__init__()
        self.slots, self.open, self.answers, self.credit = slots, {}, [], {}

    def send(self, command):
        match command:
            case worker.Open(name) | worker.Resume(name):
                assert name not in self.open and len(self.open) < self.slots, "a slot is held twice"
                self.open[name] = command.data.chunk if isinstance(command, worker.Resume) else 0
            case worker.Close(name):
                self.open.pop(name, None)
                self.credit.pop(name, None)
            case worker.Rewind(name, made):
                self.open[name] = made
                self.credit[name] = 4 * made
                self.answers.append(worker.Placed(name, made, 4 * made))
            case worker.Grant(name, frame):
                self.credit[name] = max(self.credit.get(name, 0), frame)
            case worker.Snapshot(name, ticket):
                kept = data(self.open[name]) if name in self.open else None
                self.answers.append(worker.Snapped(name, ticket, kept, "" if kept else "not here"))

    def make(self):
        """The next chunk of each session with credit."""
        for name, made in self.open.items():
            if 4 * made < self.credit.get(name, 0):
                self.open[name] += 1
                self.answers.append(chunk(name, made))


EVENTS = ["enter", "lose", "return", "leave", "park", "resume", "pause", "unpause", "rewind", "restart", "fetch"]
EVENTS += ["spectate", "spectator leaves"]
EVENTS += ["prompt", "tick", "tick", "long", "answer", "answer", "play", "play", "watch", "die", "end"]


@given(st.lists(st.tuples(st.sampled_from(EVENTS), st.integers(0, 5)), min_size=10, max_size=80))
def test_whatever_happens_the_engine_is_never_asked_for_more_than_it_has_and_all_come_to_their_end(events):
    clock, engine, drawer = FakeClock(), Model(2), Drawer()
    hub = open_hub(engine, clock, drawer, turn=20, idle=30)
    pages = []
    for seq, (event, number) in enumerate(events, 1):
        page = pages[number % len(pages)] if pages else None
        if event == "enter":
            pages.append(Page(hub))
        elif event in ("play", "answer", "tick", "long", "die"):
            pass_by(hub, engine, clock, event)
        elif page:
            with contextlib.suppress(protocol.ProtocolError):
                happen_to(page, hub, engine, drawer, event, seq)
        live = [session.engine_name for session in hub._line.live]
        assert sorted(engine.open) == sorted(live), "who is live is open in the engine, and no one else"
    settle(hub, engine, clock)
    before = {viewer.session.engine_name: viewer.made for viewer in hub._runs.viewers if not viewer.paused}
    pass_by(hub, engine, clock, "play")
    for viewer in hub._runs.viewers:
        name = viewer.session.engine_name
        assert viewer.paused or name not in before or viewer.made > before[name], "who looks sees the world go on"
    for page in pages:
        hub.leave(page.viewer)
    settle(hub, engine, clock)
    assert not engine.open and not hub._viewers and not hub._runs.viewers and hub.has_room
    assert not hub.audience._spectators, "no one watches what is over"


def pass_by(hub, engine, clock, event):
    if event == "play":
        for _ in range(4):
            engine.make()
            settle(hub, engine, clock)
            for viewer in hub._runs.viewers:
                while viewer.pacer and len(viewer.pacer):
                    hub.took(viewer, viewer.pacer.pop())
            pass_time(hub, clock, 1)
    elif event == "answer" and engine.answers:
        hub.happen(engine.answers.pop(0))
    elif event == "die":
        at_work = tuple(engine.open)[:1]
        engine.open, engine.answers, engine.credit = {}, [], {}
        hub.happen(worker.Died("killed", True, True, at_work))
        hub.happen(worker.Ready(WORLD, 1, 1))
    elif event in ("tick", "long"):
        pass_time(hub, clock, 0.25 if event == "tick" else 11)


def happen_to(page, hub, engine, drawer, event, seq):
    viewer, token = page.viewer, page.viewer.session.token
    here = hub.find(token) is viewer
    if event == "return" and hub.find(token):
        hub.return_(hub.find(token), page.hear)
        page.viewer = hub.find(token)
    elif event == "resume" and not hub.find(token) and token in drawer:
        page.viewer = hub.resume(token, drawer[token], page.hear)
    elif event == "leave":
        hub.leave(viewer)
    elif event == "lose":
        hub.lose(viewer, page.hear)
    elif event == "fetch" and here:
        hub.fetch(viewer, lambda data: None)
    elif event == "end" and viewer.session.engine_name in engine.open:
        del engine.open[viewer.session.engine_name]
        hub.happen(Ended(viewer.session.engine_name, "broken"))
    elif event == "spectate" and here and len(viewer.audience) < SPECTATORS:
        with contextlib.suppress(ValueError):  # it is being put away
            hub.spectate(viewer.session.watch_token, lambda message: None)
    elif event == "spectator leaves" and viewer.audience:
        hub.dismiss(viewer.audience[0])
    elif event == "watch" and viewer.pacer and len(viewer.pacer):
        watch(page, 1)
    elif here and viewer.hear == page.hear:
        messages = {
            "park": protocol.Park(),
            "pause": protocol.Pause(seq=seq),
            "unpause": protocol.Unpause(seq=seq),
            "rewind": protocol.Rewind(seq=seq, chunk=max(0, viewer.made - 1)),
            "restart": protocol.Restart(seq=seq),
            "prompt": protocol.Prompt(seq=seq, text="blue"),
        }
        if event in messages:
            page.says(messages[event])


def settle(hub, engine, clock):
    while engine.answers:
        hub.happen(engine.answers.pop(0))
    hub.tick()


def test_who_comes_back_to_a_paused_world_hears_that_it_stands(hub, engine):
    page = Page(hub)
    page.says(protocol.Pause(seq=3))
    hub.lose(page.viewer, page.hear)
    page.heard.clear()
    hub.return_(page.viewer, page.hear)
    assert page.types() == ["welcome", "live", "paused"] and page.last(protocol.Paused).seq == 3


def test_who_comes_back_hears_how_the_prompt_was_understood(hub, engine):
    page = Page(hub)
    hub.happen(chunk(page.run, scene="a red place", unknown=("dragon",)))
    hub.lose(page.viewer, page.hear)
    page.heard.clear()
    hub.return_(page.viewer, page.hear)
    assert page.types() == ["welcome", "live", "scene"] and page.last(protocol.Scene).unknown_words == ("dragon",)
    hub.happen(worker.Died("it broke", True))
    hub.lose(page.viewer, page.hear)
    page.heard.clear()
    hub.return_(page.viewer, page.hear)
    hub.happen(worker.Ready(WORLD, 1, 1))
    hub.happen(chunk(page.run, scene="a red place", unknown=("dragon",)))
    assert page.types() == ["welcome", "queued", "live", "scene"], "also where the engine died meanwhile"


def test_a_live_viewer_sees_the_turn_run_out_but_only_while_others_wait(engine, clock, drawer):
    hub = open_hub(engine, clock, drawer, turn=60)
    page, _ = Page(hub), Page(hub)
    pass_time(hub, clock, 1)
    assert page.last(protocol.Stats).turn_seconds is None
    Page(hub)
    pass_time(hub, clock, 2)
    assert page.last(protocol.Stats).turn_seconds == 57


def test_a_world_that_needs_pictures_lets_those_who_have_none_wait_and_no_one_wait_for_them(engine, clock, drawer):
    hub = Hub(engine, clock=clock, archive=drawer, fairness=Fairness(turn=60))
    hub.happen(worker.Ready(replace(WORLD, image="required", slots=1), 1, 1))
    first, second = Page(hub), Page(hub)
    assert first.last(protocol.Queued).needs_picture and first.last(protocol.Welcome).image == "required"
    second.viewer.picture = b"a picture"
    second.says(protocol.Restart(seq=1, image=name_of(b"a picture")))
    assert second.types()[-2:] == ["live", "received"]
    assert engine.of(worker.Open)[-1].spec.image == b"a picture"
    pass_time(hub, clock, 5)
    assert second.last(protocol.Stats).turn_seconds is None
    with pytest.raises(protocol.ProtocolError, match="no such picture"):
        second.says(protocol.Restart(seq=2, image="0" * 16))
    assert second.viewer.session.run == 1 and second.viewer.session.sequence == 1


def test_a_world_that_began_with_a_picture_and_no_words_is_come_back_to(engine, clock, drawer):
    hub = Hub(engine, clock=clock, archive=drawer)
    hub.happen(worker.Ready(replace(WORLD, names_pictures=True), 1, 1))
    kept = replace(data(), spec=SessionSpec("a", "", 5, b"a picture"))
    viewer = hub.resume("token-0123456789", kept, lambda message: None)
    assert viewer.session.prompt == "" and viewer.session.image == b"a picture"
    hub.obey(viewer, protocol.Restart(seq=3))
    assert engine.of(worker.Open)[-1].spec.prompt == ""
    hub.obey(viewer, protocol.Prompt(seq=4, text="at night"))
    assert engine.of(worker.Steer)[-1].control.prompt == viewer.session.prompt == "at night"


def test_a_parked_world_keeps_its_picture(hub, engine, drawer):
    kept = data()
    kept = replace(kept, spec=replace(kept.spec, image=b"a picture"))
    viewer = hub.resume("t" * 32, kept, lambda message: None)
    hub.obey(viewer, protocol.Restart(seq=1))
    assert engine.of(worker.Open)[-1].spec.image == b"a picture"
