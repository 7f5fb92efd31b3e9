"""Those who watch somebody's world by a link: stream/audience.py in the hub, and over real sockets."""

import contextlib

import numpy as np
import pytest
import websockets
from serving import Player, hear, say, serving, until, watch
from test_hub import WORLD, Drawer, FakeWorker, Page, pass_time

from stream import protocol, worker
from stream.audience import UNKNOWN
from stream.hub import Hub
from stream.pacer import Mirror, Paced
from stream.viewer import KEPT, OVER


@pytest.fixture
def hub(clock):
    made = Hub(FakeWorker(), clock=clock, archive=Drawer(), spectators=2)
    made.happen(worker.Ready(WORLD, 1, 1))
    return made


def frame(number):
    return Paced(np.zeros((2, 2, 3), np.uint8), number, 0, 0, "a.1", 5625 * number)


def spectate(hub, page):
    heard = []
    return hub.spectate(page.last(protocol.Welcome).watch_token, heard.append), heard


def types(heard):
    return [message.type for message in heard]


def test_the_link_is_a_secret_of_its_own_from_which_the_token_does_not_follow(hub):
    page, other = Page(hub), Page(hub)
    welcome = page.last(protocol.Welcome)
    assert len({welcome.watch_token, welcome.token, other.last(protocol.Welcome).watch_token}) == 3
    assert hub.find(welcome.watch_token) is None
    for wrong in (welcome.token, "x" * 32, "é", ""):
        with pytest.raises(ValueError, match="There is no one to watch here"):
            hub.spectate(wrong, lambda message: None)


def test_a_spectator_hears_how_the_world_is_and_nothing_of_its_viewers_affairs(hub, clock):
    page = Page(hub)
    spectator, heard = spectate(hub, page)
    welcome = heard[0]
    assert types(heard) == ["welcome", "live"] and welcome.spectates and welcome.keys == () and welcome.image == "none"
    assert welcome.token == spectator.token != page.viewer.session.token and welcome.watch_token is None
    page.says(protocol.Keys(seq=1, held=("w",)))
    page.says(protocol.Pause(seq=2))
    page.says(protocol.Unpause(seq=3))
    pass_time(hub, clock, 1)
    assert types(heard[2:]) == ["paused", "live", "stats"]
    page.says(protocol.Pause(seq=4))
    assert types(spectate(hub, page)[1]) == ["welcome", "live", "paused"], "who comes later is told that it stands"


def test_what_leaves_for_the_viewer_is_seen_by_all_and_a_slow_one_misses_frames(hub):
    page = Page(hub)
    page.viewer.show(frame(0))
    spectator, _ = spectate(hub, page)
    assert spectator.pacer.pop().frame == 0, "a world that stands still is seen at once"
    came = []
    spectator.pacer.listener = lambda: came.append(True)
    for number in range(1, 6):
        page.viewer.show(frame(number))
    assert len(came) == 5 and spectator.pacer.delay() == 0
    assert [spectator.pacer.pop().frame for _ in range(Mirror.CAPACITY)] == [4, 5] and spectator.pacer.delay() is None


def test_no_more_may_watch_than_is_said_and_who_goes_makes_room(hub):
    page = Page(hub)
    first, _ = spectate(hub, page)
    spectate(hub, page)
    with pytest.raises(ValueError, match="At most 2 may watch"):
        spectate(hub, page)
    assert b"chunkcast_spectators 2.0" in hub.metrics.text()
    assert b'chunkcast_refusals_total{reason="spectators"} 1.0' in hub.metrics.text()
    hub.dismiss(first)
    hub.dismiss(first)
    spectate(hub, page)
    assert page.viewer.session.slot == 0, "and the viewer's session stays"


def test_a_walk_that_is_being_put_away_has_no_one_to_watch(hub):
    page = Page(hub)
    page.says(protocol.Park())
    assert page.viewer.session.awaits_data, "it is here until the engine has given what it was"
    with pytest.raises(ValueError, match="There is no one to watch here"):
        spectate(hub, page)


def test_a_walk_that_is_over_or_put_away_is_over_for_those_who_watch(hub):
    leaves, parks = Page(hub), Page(hub)
    (gone, heard_gone), (kept, heard_kept) = spectate(hub, leaves), spectate(hub, parks)
    closed = []
    gone.ended, kept.ended = lambda: closed.append("gone"), lambda: closed.append("kept")
    leaves.says(protocol.Leave())
    parks.says(protocol.Park())
    assert heard_gone[-1] == protocol.Ended(reason=OVER)
    assert heard_kept[-1] == protocol.Parked(reason=KEPT, by_itself=True)
    assert closed == ["gone", "kept"] and gone.is_over and kept.is_over
    assert hub.find_watcher(gone.token) is None and b"chunkcast_spectators 0.0" in hub.metrics.text()


def test_the_link_holds_when_the_viewer_comes_back_with_its_token(hub):
    page = Page(hub)
    link, token = page.last(protocol.Welcome).watch_token, page.viewer.session.token
    hub.lose(page.viewer, page.hear)
    hub.return_(hub.find(token), page.hear)
    assert page.last(protocol.Welcome).watch_token == link
    hub.spectate(link, lambda message: None)


def test_a_server_may_let_no_one_watch(clock):
    hub = Hub(FakeWorker(), clock=clock, spectators=0)
    hub.happen(worker.Ready(WORLD, 1, 1))
    page = Page(hub)
    assert page.last(protocol.Welcome).watch_token is None
    with pytest.raises(ValueError, match="At most 0 may watch"):
        hub.spectate(page.viewer.session.watch_token, lambda message: None)


# Over real sockets.


@contextlib.asynccontextmanager
async def glimpse(client, token):
    async with websockets.connect(f"ws://127.0.0.1:{client.port}/ws") as socket:
        await say(socket, type="spectate", version=1, token=token)
        yield socket


async def test_two_people_see_the_same_walk_and_one_of_them_steers_nothing(client):
    walker, guest = Player(), Player()
    async with client.page(prompt="blue") as page:
        mine = await hear(page, "welcome")
        await watch(client, walker, mine["token"])
        async with glimpse(client, mine["watch_token"]) as socket:
            theirs = await hear(socket, "welcome")
            assert theirs["spectates"] and (await hear(socket, "live"))["prompt"] == "blue"
            await watch(client, guest, theirs["token"])
            red, _, blue = guest.frames[-1][1].to_ndarray(format="rgb24")[8].mean(axis=0)
            assert blue > red + 50
            await say(socket, type="keys", seq=1, held=["l"])
            assert "steers nothing" in (await hear(socket, "error"))["message"]
            await walker.frames_there(len(walker.frames) + 8)
            assert client.service.hub.find(mine["token"]).session.held == frozenset()
        await until(lambda: len(client.service._peers) == 1)
        await walker.frames_there(len(walker.frames) + 8)
    await walker.connection.close()
    await guest.connection.close()


async def test_a_whep_player_watches_by_the_link_and_goes_with_the_walk(client):
    walker, guest = Player(), Player()
    async with client.page(prompt="blue") as page:
        mine = await hear(page, "welcome")
        answer = await client.post("/whep?watch=" + "x" * 32, await guest.offer())
        assert answer.status_code == 404 and UNKNOWN in answer.text
        await watch(client, walker, mine["token"])
        answer = await client.post(f"/whep?watch={mine['watch_token']}", guest.connection.localDescription.sdp)
        assert answer.status_code == 201
        await guest.take(answer.text)
        await guest.frames_there(8)
    await until(lambda: not client.service._peers)
    assert not client.service.hub.audience._spectators
    await walker.connection.close()
    await guest.connection.close()


async def test_a_server_that_ends_tells_those_who_watch():
    async with serving() as client, client.page() as page:
        link = (await hear(page, "welcome"))["watch_token"]
        async with glimpse(client, link) as socket:
            await hear(socket, "live")
            await client.service.drain()
            assert (await hear(socket, "ended"))["reason"] == OVER
