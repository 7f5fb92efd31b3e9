"""stream/doors.py: who may come in, and that a connection that says nothing does not stay."""

import asyncio
import contextlib

import pytest
import websockets
from serving import HELLO, Player, hear, say, serving, until
from starlette.websockets import WebSocket
from test_api import bearer

from stream import doors
from stream.api import FILE
from stream.client import Wish, watch
from stream.doors import Doors, NoAccess, TooMany, is_welcome


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("203.0.113.7", "::ffff:203.0.113.7"),
        ("2001:db8:1:2::3", "2001:db8:1:2:ffff::4"),
    ],
)
def test_connections_of_one_address_are_bounded_and_another_address_has_its_own(one, other):
    made = Doors(2)
    taken = [made.take(one), made.take(other)]
    with pytest.raises(TooMany, match="has 2 connections already"):
        made.take(one)
    assert made.take("198.51.100.1") and made.take("2001:db8:1:3::3")
    made.give_back(taken.pop())
    assert made.take(other) == taken[0]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "::ffff:127.0.0.1", None, "", "a pipe"])
def test_this_machines_own_connections_are_not_counted(host):
    made = Doors(2)
    assert [made.take(host) for _ in range(5)] == [None] * 5 and made.open == 0


def address(host):
    """What a proxy on this machine says of its client."""
    return {"X-Forwarded-For": host}


@contextlib.asynccontextmanager
async def page_of(client, host, hello=HELLO, **headers):
    url = f"ws://127.0.0.1:{client.port}/ws"
    async with websockets.connect(url, additional_headers={**address(host), **headers}) as page:
        with contextlib.suppress(websockets.ConnectionClosed):  # it may be refused before
            await say(page, **hello)
        yield page


async def test_a_page_too_many_is_told_why_and_a_picture_too_many_is_429():
    player = Player()
    async with serving(doors=Doors(2)) as client, page_of(client, "203.0.113.7") as first:
        token = (await hear(first, "welcome"))["token"]
        await hear(first, "live")
        async with page_of(client, "203.0.113.7") as second:
            await hear(second, "welcome")
            async with page_of(client, "203.0.113.7") as third:
                told = (await hear(third, "ended"))["reason"]
                assert told == "Your address has 2 connections already; close one, then try again."
            offer = await player.offer()
            refused = await client.post(f"/whep?session={token}", offer, **address("203.0.113.7"))
            assert refused.status_code == 429 and "retry-after" in refused.headers
        await until(lambda: client.service.doors.open <= 1)
        answer = await client.post(f"/whep?session={token}", offer, **address("203.0.113.7"))
        assert answer.status_code == 201 and client.service.doors.open == 2
        await client.http.delete(answer.headers["location"])
        assert client.service.doors.open == 1
    await player.connection.close()


async def test_a_picture_over_a_websocket_counts_before_its_first_word():
    async with serving(doors=Doors(2)) as client, contextlib.AsyncExitStack() as stack:

        async def connected():
            url = f"ws://127.0.0.1:{client.port}/frames"
            connection = websockets.connect(url, additional_headers=address("203.0.113.7"))
            return await stack.enter_async_context(connection)

        await connected()
        await connected()
        late = await connected()
        await late.wait_closed()
        assert late.close_code == 4000 and "2 connections already" in late.close_reason


SENT = [(b"",), (b"GET / HTTP/1.1\r\nHos",), (b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", b"GET / HT")]


async def until_closed(port, sent):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for part in sent:
        writer.write(part)
        await asyncio.sleep(0.2)
    async with asyncio.timeout(5):
        await reader.read()
    writer.close()


async def test_a_connection_whose_request_never_comes_is_closed(monkeypatch):
    async with serving() as client:
        monkeypatch.setattr(doors, "HEAD_SECONDS", 0.8)
        await asyncio.gather(*(until_closed(client.port, sent) for sent in SENT))
        async with client.page() as page:
            await hear(page, "live")
            await asyncio.sleep(1.2)
            await say(page, type="leave")
            await hear(page, "ended")


async def test_a_body_that_never_comes_is_answered_408(monkeypatch):
    monkeypatch.setattr("stream.whep.BODY_SECONDS", 0.3)
    monkeypatch.setattr("stream.api.BODY_SECONDS", 0.3)
    async with serving() as client:
        for path, kind in (("/whep", "application/sdp"), ("/api/sessions", "application/json")):
            reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
            head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nContent-Length: 99\r\n\r\nv=0"
            writer.write(head.encode())
            async with asyncio.timeout(8):  # without that, it would be 10
                assert b" 408 " in await reader.readline()
            writer.close()


async def sent_slowly(path, kind, parts, pause):
    """The status of a body that comes in so many parts of 100 bytes."""
    async with serving() as client:
        reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nContent-Length: {100 * parts}\r\n\r\n"
        writer.write(head.encode())
        answer = asyncio.create_task(reader.readline())
        for _ in range(parts):
            if answer.done():
                break
            writer.write(b"x" * 100)
            await asyncio.sleep(pause)
        async with asyncio.timeout(8):
            status = (await answer).split()[1]
        writer.close()
        return status


@pytest.mark.parametrize(("pace", "status"), [(10_000, b"408"), (100, b"400")])
async def test_a_body_that_comes_too_slowly_holds_its_place_no_longer(monkeypatch, pace, status):
    monkeypatch.setattr("stream.body.SLACK_SECONDS", 0.3)
    monkeypatch.setattr("stream.body.PACE", pace)
    assert (
        await sent_slowly("/api/sessions/file", FILE, 20, 0.05) == status
    )  # 2000 bytes a second; and it is no session


@pytest.mark.parametrize(
    ("origin", "host", "welcome"),
    [
        (None, "world.example.org", True),
        ("https://world.example.org", "world.example.org", True),
        ("https://world.example.org", "world.example.org:443", True),
        ("http://localhost:8080", "localhost:8080", True),
        ("http://[::1]:8080", "[::1]:8080", True),
        ("https://friend.example.org", "world.example.org", True),
        ("https://evil.example.org", "world.example.org", False),
        ("https://world.example.org.evil.org", "world.example.org", False),
        ("https://world.example.org@evil.org", "world.example.org", False),
        ("http://localhost:9090", "localhost:8080", False),
        ("https://world.example.org:99999", "world.example.org", False),
        ("https://world.example.org", None, False),
        ("null", "world.example.org", False),
        ("null", None, False),
        ("", "", False),
    ],
)
def test_pages_of_this_server_and_of_those_that_are_listed_may_steer(origin, host, welcome):
    assert is_welcome(origin, host, ("https://friend.example.org",)) == welcome
    assert is_welcome(origin, host, ("*",))


async def test_a_page_of_another_site_gets_no_socket_and_our_own_does():
    async with serving(allowed_origins=("https://friend.example.org",)) as client:
        for origin in (f"http://127.0.0.1:{client.port}", "https://friend.example.org"):
            async with page_of(client, "203.0.113.7", Origin=origin) as page:
                await hear(page, "welcome")
        with pytest.raises(websockets.InvalidStatus) as refused:
            async with page_of(client, "203.0.113.7", Origin="https://evil.example.org"):
                pass
        assert refused.value.response.status_code == 403 and b"--allow-origin" in refused.value.response.body
        assert client.service.doors.open == 0


async def test_a_server_that_closes_lets_no_one_in_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("stream.hub.Hub.close", lambda *_: None)  # the moment before it is done
    player = Player()
    async with serving(sessions=tmp_path) as client, client.page() as page:
        await hear(page, "live")
        await client.service.drain()
        async with client.page() as late:
            assert (await hear(late, "ended"))["reason"] == "The server is closing."
        refused = await client.http.post("/api/sessions", json={"prompt": "red"})
        assert refused.status_code == 503 and "closing" in refused.json()["detail"]
        assert (await client.post("/whep", await player.offer())).status_code == 503
        assert (await client.http.get("/readyz")).status_code == 503
    await player.connection.close()


async def test_a_server_ends_after_its_pages_were_told_why(client, monkeypatch):
    close, closed = WebSocket.close, []

    async def slow(socket, *arguments):
        await asyncio.sleep(0.1)
        await close(socket, *arguments)
        closed.append(socket)

    monkeypatch.setattr(WebSocket, "close", slow)
    monkeypatch.setattr("stream.server.LAST_WORDS_SECONDS", 30)
    async with client.page() as page, websockets.connect(f"ws://127.0.0.1:{client.port}/ws"):
        await hear(page, "live")
        await client.service.drain()
        assert len(closed) == 1
        assert "closing" in (await hear(page, "ended"))["reason"]


TOKEN = "a-long-enough-secret"


@pytest.mark.parametrize("given", [None, "", TOKEN[:-1], TOKEN + "x", "\u00e9" * 20, "\ud800"])
def test_only_the_servers_token_is_the_servers_token(given):
    Doors(token=TOKEN).check_token(TOKEN)
    Doors().check_token(given)
    with pytest.raises(NoAccess) as refused:
        Doors(token=TOKEN).check_token(given)
    assert TOKEN not in str(refused.value)


@pytest.mark.parametrize("token", ["", "short", "with a space in it ", "\u00e9" * 16, "x" * 257])
def test_a_token_that_is_none_is_refused_and_not_repeated(token):
    with pytest.raises(ValueError, match="16 to 256 ASCII characters") as refused:
        Doors(token=token)
    assert not token or token not in str(refused.value)


async def test_with_a_token_no_way_leads_to_a_world_without_it(tmp_path, caplog, capfd):
    player = Player()
    async with serving(doors=Doors(token=TOKEN)) as client:
        offer, file = await player.offer(), {"Content-Type": "application/octet-stream"}
        for headers in ({}, bearer("x" * 20)):
            answers = [
                await client.post("/whep", offer, **headers),
                await client.http.post("/api/sessions", json={"prompt": "red"}, headers=headers),
                await client.http.post("/api/sessions/file", content=b"x", headers={**file, **headers}),
            ]
            assert [(one.status_code, one.headers["www-authenticate"]) for one in answers] == [(401, "Bearer")] * 3
        for wrong in ({}, {"access": "x" * 20}, {"access": "x" * 20, "token": "y" * 32}):
            async with client.page(**wrong) as page:
                ended = await hear(page, "ended")
                assert "token" in ended["reason"] and ended["needs_access"]
                await page.wait_closed()
        assert client.service.hub.has_room and "viewers 0.0" in (await client.http.get("/metrics")).text

        made = await client.http.post("/api/sessions", json={"prompt": "red"}, headers=bearer(TOKEN))
        assert made.status_code == 201
        where = made.headers["location"]
        assert (await client.http.get(where, headers=bearer(made.json()["token"]))).status_code == 200
        assert (await client.http.get(where, headers=bearer(TOKEN))).status_code == 404
        assert (await client.http.delete(where, headers=bearer(made.json()["token"]))).status_code == 204
        answer = await client.post("/whep", offer, **bearer(TOKEN))
        assert answer.status_code == 201
        await client.http.delete(answer.headers["location"])
        with pytest.raises(ValueError, match="give"):
            await watch(f"http://127.0.0.1:{client.port}", Wish("red", 2), tmp_path / "out.mp4")
        assert await watch(f"http://127.0.0.1:{client.port}", Wish("red", 2, access=TOKEN), tmp_path / "out.mp4") == 2
    await player.connection.close()
    printed = capfd.readouterr()
    assert TOKEN not in caplog.text + printed.out + printed.err
    assert TOKEN not in repr(Wish("red", 2, access=TOKEN))
