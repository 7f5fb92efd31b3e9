"""stream/server.py: the routes as clients use and misuse them, with the fake engine in its real process."""

import asyncio
import contextlib
import os
import signal

import pytest
import websockets
from conftest import Stopwatch
from serving import HELLO, Player, hear, say, serving, stands_still, until, watch

from stream import serve
from stream.hub import GRACE_SECONDS
from stream.server import FLOOD


async def test_a_viewer_sees_and_steers_and_closing_the_page_lets_the_next_one_in(client, player):
    async with contextlib.AsyncExitStack() as later:
        async with client.page() as first:
            welcome = await hear(first, "welcome")
            assert (welcome["preset"], welcome["width"], welcome["fps"]) == ("fake", 160, 16)
            assert await hear(first, "live") == {"type": "live", "slot": 0, "seed": 7, "prompt": "red"}
            second = await later.enter_async_context(client.page(prompt="green"))
            assert (await hear(second, "live"))["slot"] == 1
            third = await later.enter_async_context(client.page(prompt="blue"))
            assert (await hear(third, "queued"))["place"] == 1
            await watch(client, player, welcome["token"])
            await say(first, type="keys", seq=1, held=["l"])
            assert (await hear(first, "received"))["seq"] == 1
            applied = await hear(first, "applied")
            assert applied["seq"] == 1 and applied["rtp"] is not None
        assert (await hear(third, "live"))["prompt"] == "blue"


async def test_a_viewer_in_line_is_told_to_ask_for_the_picture_later(client, player):
    async with client.page() as first, client.page() as second:
        await hear(first, "live")
        await hear(second, "live")
        async with client.page() as third:
            token = (await hear(third, "welcome"))["token"]
            answer = await client.post(f"/whep?session={token}", await player.offer())
            assert answer.status_code == 409 and "waits in line" in answer.text


async def test_bad_messages_are_answered_and_the_connection_stays(client):
    async with websockets.connect(f"ws://127.0.0.1:{client.port}/ws") as page:
        await page.send("junk")
        assert "JSON" in (await hear(page, "error"))["message"]
        await page.send(b"\x00")
        assert "text frames" in (await hear(page, "error"))["message"]
        await say(page, type="keys", seq=3, held=[])
        error = await hear(page, "error")
        assert "say hello first" in error["message"] and error["seq"] == 3
        await say(page, **HELLO)
        await hear(page, "live")
        await say(page, type="keys", seq=4, held=["x"])
        assert "no such key" in (await hear(page, "error"))["message"]
        await say(page, type="leave")
        assert (await hear(page, "ended"))["reason"] == "You left."
        await page.wait_closed()
    assert client.service.hub.has_room


async def test_another_version_is_told_so_and_closed(client):
    async with client.page(version=9) as page:
        assert "version 1, not 9" in (await hear(page, "error"))["message"]
        await page.wait_closed()


async def test_a_flood_is_cut_off_and_no_one_else_notices(client):
    async with client.page(prompt="green") as other, client.page() as page:
        await hear(page, "live")
        with contextlib.suppress(websockets.ConnectionClosed):
            for _ in range(2 * FLOOD):
                await page.send('{"type": "keys", "seq": 1, "held": []}')
        assert "too many messages" in (await hear(page, "error"))["message"]
        await page.wait_closed()
        await say(other, type="keys", seq=1, held=[])
        assert (await hear(other, "received"))["seq"] == 1


async def test_when_the_engine_dies_viewers_wait_and_are_live_again(client):
    async with client.page() as page, client.page(prompt="stop") as short:
        await hear(page, "live")
        assert "gave up" in (await hear(short, "ended"))["reason"]
        await say(page, type="prompt", seq=1, text="explode")
        await say(page, type="prompt", seq=2, text="die")
        await say(page, type="restart", seq=3)
        assert "starting again" in (await hear(page, "queued"))["reason"]
        assert (await client.http.get("/readyz")).status_code == 503
        await say(page, type="prompt", seq=4, text="green")
        assert (await hear(page, "live"))["prompt"] == "green"
        assert "green bar" in (await hear(page, "scene"))["text"]


async def break_off(page):
    """The connection breaks without a word."""
    page.transport.abort()
    await page.wait_closed()


async def walked(page, player, client, token, seq=1):
    """See the picture and hold a key; the first chunk that obeys."""
    await watch(client, player, token)
    await say(page, type="keys", seq=seq, held=["l"])
    return (await hear(page, "applied"))["chunk"]


async def test_a_broken_connection_comes_back_with_its_token_to_the_same_slot(client):
    async with client.page() as page, client.page(prompt="green") as other:
        token = (await hear(page, "welcome"))["token"]
        await hear(other, "live")
        await break_off(page)
        async with client.page(prompt="blue", token=token) as again:
            assert (await hear(again, "welcome"))["token"] == token
            assert await hear(again, "live") == {"type": "live", "slot": 0, "seed": 7, "prompt": "red"}


async def test_who_closes_as_browsers_close_a_page_has_left_and_frees_the_slot_at_once(client):
    for code in (1000, 1001):
        async with client.page() as page:
            token = (await hear(page, "welcome"))["token"]
            await page.close(code)
        # In far less than the grace of a connection that breaks.
        await until(lambda token=token: not client.service.hub.find(token), GRACE_SECONDS / 3)
    async with client.page() as page:
        token = (await hear(page, "welcome"))["token"]
        await page.close(3000)
    viewer = client.service.hub.find(token)
    await until(lambda: viewer.session.lost_at is not None)
    assert client.service.hub.find(token) is viewer, "this one broke off"


async def test_what_is_said_after_a_park_in_one_breath_changes_nothing(player, tmp_path):
    async with serving(sessions=tmp_path) as client, client.page() as page:
        token = (await hear(page, "welcome"))["token"]
        await walked(page, player, client, token)
        for message in ('{"type": "park"}', '{"type": "restart", "seq": 9}', '{"type": "park"}'):
            await page.send(message)
        await hear(page, "parked")
        await page.wait_closed()
        await until(lambda: not client.service.hub.find(token))
        await asyncio.to_thread(client.service.archive.flush)
        assert client.service.archive.get(token) is not None


async def test_a_parked_world_goes_on_where_it_was_also_on_the_next_server(player, tmp_path):
    async with serving(sessions=tmp_path) as client, client.page() as page:
        token = (await hear(page, "welcome"))["token"]
        chunk = await walked(page, player, client, token)
        await say(page, type="park")
        assert (await hear(page, "parked"))["reason"] == "You parked this world."
        await page.wait_closed()
    second = Player()
    async with serving(sessions=tmp_path) as client, client.page(prompt="blue", token=token) as page:
        assert (await hear(page, "welcome"))["seq"] == 1
        assert (await hear(page, "live"))["prompt"] == "red"
        assert await walked(page, second, client, token, seq=2) > chunk
        await say(page, type="leave")
        await page.wait_closed()
        await second.connection.close()
    assert list(tmp_path.iterdir()) == [], "who left for good leaves nothing"


async def test_a_token_that_no_one_has_begins_a_new_world(client):
    async with client.page(prompt="green", token="x" * 32) as page:
        assert (await hear(page, "welcome"))["token"] != "x" * 32
        assert (await hear(page, "live"))["prompt"] == "green"


def broken(client, page, how):
    """The engine comes to an end: by a signal, or over what the page asks for."""
    if how == "kill -9":
        os.kill(client.service._engine.pid, signal.SIGKILL)
        return asyncio.sleep(0)
    return say(page, type="prompt", seq=1, text=how)


@pytest.mark.parametrize("how", ["kill -9", "hang", "explode", "starve"])
async def test_however_the_engine_ends_a_world_goes_on_with_the_picture_it_had(client, player, monkeypatch, how):
    monkeypatch.setattr("stream.hub.KEEP_SECONDS", 0.3)
    monkeypatch.setattr("stream.runs.KEEP_SECONDS", 0.3)
    other = Player()
    async with client.page() as page, client.page(prompt="green") as guilty:
        token, its = (await hear(page, "welcome"))["token"], (await hear(guilty, "welcome"))["token"]
        await walked(page, player, client, token)
        await watch(client, other, its)
        viewer = client.service.hub.find(token)
        await until(lambda: viewer.session.data is not None)
        kept, shown, stopwatch = viewer.session.data.chunk, len(player.frames), Stopwatch()
        await broken(client, guilty, how)
        queued = await hear(page, "queued")
        noticed = stopwatch.seconds
        assert queued["restoring"] and "starting again" in queued["reason"]
        await hear(page, "live")
        await say(page, type="keys", seq=2, held=["j"])
        applied = await hear(page, "applied")
        print(f"{how}: noticed after {noticed:.2f} s, picture after {stopwatch.seconds:.2f} s")
        assert noticed < 2.5 and applied["seq"] == 2 and applied["chunk"] >= kept > 0
        await player.frames_there(shown + 4)
    await other.connection.close()


async def test_a_world_that_kills_the_engine_twice_ends_and_the_other_goes_on(client):
    async with client.page(prompt="green") as other, client.page() as page:
        await hear(other, "live")
        await say(page, type="prompt", seq=1, text="die")
        await say(page, type="restart", seq=2)
        assert "broke the engine twice" in (await hear(page, "ended", seconds=20))["reason"]
        await hear(other, "live")
        await say(other, type="keys", seq=1, held=[])
        await hear(other, "received")


async def test_a_paused_world_stands_still_and_goes_on(client, player):
    async with client.page() as page:
        token = (await hear(page, "welcome"))["token"]
        await watch(client, player, token)
        await say(page, type="pause", seq=1)
        stopped = (await hear(page, "paused"))["chunk"]
        await stands_still(player)
        await say(page, type="unpause", seq=2)
        assert (await hear(page, "applied"))["chunk"] == stopped


async def test_a_rewound_world_goes_on_from_there(client, player):
    async with client.page() as page:
        token = (await hear(page, "welcome"))["token"]
        assert await walked(page, player, client, token) > 1
        await say(page, type="rewind", seq=2, chunk=1)
        assert (await hear(page, "received"))["seq"] == 2
        assert (await hear(page, "applied"))["chunk"] == 1
        await say(page, type="rewind", seq=3, chunk=10_000)
        assert "not 10000" in (await hear(page, "error"))["message"]


async def test_the_page_and_only_the_page_is_served(client):
    page = await client.http.get("/")
    assert page.status_code == 200 and "text/html" in page.headers["content-type"]
    assert "default-src 'self'" in page.headers["content-security-policy"]
    script = await client.http.get("/messages.js")
    assert "text/javascript" in script.headers["content-type"]
    for path in ("/__init__.py", "/nothing.js", "/..%2fpyproject.toml", "/%2e%2e/stream/server.py"):
        assert (await client.http.get(path)).status_code == 404, path
    assert (await client.http.get("/healthz")).text == "ok\n"


async def test_a_page_that_vanishes_without_a_word_is_noticed_within_five_seconds(monkeypatch):
    assert serve.PING_SECONDS + serve.PONG_SECONDS <= 5
    monkeypatch.setattr(serve, "PING_SECONDS", 0.3)
    monkeypatch.setattr(serve, "PONG_SECONDS", 1.5)  # longer than a busy machine may hold up an answer
    async with serving() as client, client.page() as page:
        viewer = client.service.hub.find((await hear(page, "welcome"))["token"])
        await asyncio.sleep(2)
        assert viewer.session.lost_at is None, "who answers stays"
        page.transport.pause_reading()
        await until(lambda: viewer.session.lost_at is not None, 6)
        page.transport.abort()  # or its own end waits for words that it does not read


async def test_a_server_that_keeps_no_worlds_says_so_when_it_closes(client, player, monkeypatch):
    monkeypatch.setattr("stream.hub.KEEP_SECONDS", 0.3)
    monkeypatch.setattr("stream.runs.KEEP_SECONDS", 0.3)
    async with client.page() as page:
        token = (await hear(page, "welcome"))["token"]
        await walked(page, player, client, token)
        await until(lambda: client.service.hub.find(token).session.data is not None)
        await client.service.drain()
        assert (await hear(page, "ended"))["reason"].endswith("It keeps no worlds, so this one is over.")
