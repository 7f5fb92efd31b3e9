"""The whole server under hostile input: every answer is a proper one, nothing is left behind, and a viewer who plays
throughout gets every frame in order.
"""

import asyncio
import contextlib
import gc
import itertools
import json
import logging
import os
import socket
from collections import Counter
from pathlib import Path

import numpy as np
import websockets
from aiortc import RTCPeerConnection
from fake_engine import WIDTH
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from serving import HELLO, Player, hear, say, serving, until, watch
from test_protocol import GOOD

from stream import protocol, server, webrtc
from stream.doors import SOCKETS_PER_ADDRESS
from stream.viewer import Viewer

IN_FLIGHT = 4
KINDS = (Viewer, webrtc.Peer, server.Connection, RTCPeerConnection)


def examples(strategy, count):
    """So many examples of a hypothesis strategy, the same ones each time."""
    found = []

    @settings(
        max_examples=count,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def collect(example):
        found.append(example)

    collect()
    return found


def bar(frame):
    """Where the fake engine's bright bar is, in pixels, on a ring: it leaves at one side and enters at the other."""
    bright = frame.to_ndarray(format="rgb24")[48].min(axis=1).astype(float) ** 3
    turn = np.angle((bright * np.exp(2j * np.pi * np.arange(WIDTH) / WIDTH)).sum())
    return turn * WIDTH / (2 * np.pi)


def astray(frames):
    """By how many pixels the bar is at most away from where it belongs, one pixel further with each frame; an encoder
    that lacks bits may draw it a little late."""
    places = np.array([bar(frame) for _, frame in frames]) - np.arange(len(frames))
    off = (places - places[0] + WIDTH / 2) % WIDTH - WIDTH / 2
    return abs(off).max()


async def alive():
    """What could be left behind: tasks, files, and objects of a viewer's, as (kind, number)."""
    for _ in range(3):
        gc.collect()
        await asyncio.sleep(0)
    found = Counter(type(one).__name__ for one in gc.get_objects() if type(one) in KINDS)
    found["tasks"], found["files"] = len(asyncio.all_tasks()), len(os.listdir("/proc/self/fd"))
    return found


async def settled(before, seconds=15):
    """What is more than before, once that no longer changes."""
    end = asyncio.get_running_loop().time() + seconds
    while (more := await alive() - before) and asyncio.get_running_loop().time() < end:  # noqa: ASYNC110
        await asyncio.sleep(0.2)
    return dict(more)


@contextlib.asynccontextmanager
async def calm_viewer(client, caplog):
    """A viewer who plays while the test does its worst: no frame may be lost by it, nothing stay, and no error be
    logged."""
    caplog.set_level(logging.WARNING)
    player = Player()
    async with client.page(prompt="green") as page:
        token = (await hear(page, "welcome"))["token"]
        await watch(client, player, token)
        await client.hang_up()
        before = await alive()
        yield page
        await client.hang_up()
        assert await settled(before) == {}, "something was left behind"
        hub, viewer = client.service.hub, client.service.hub.find(token)
        assert len(hub._viewers) == 1 and hub.has_room and len(client.service._peers) == 1
        # A moment for what is on its way; what is lost never comes.
        await until(lambda: len(player.frames) >= viewer.next_frame - IN_FLIGHT)
        seen, sent = len(player.frames), viewer.next_frame
        await player.frames_there(seen + 8)
        assert seen >= sent - IN_FLIGHT and viewer.pacer.dropped == 0, "every frame came"
        assert all(later.pts > earlier.pts for (_, earlier), (_, later) in itertools.pairwise(player.frames))
        assert astray(player.frames) < 12
    await player.connection.close()
    assert [record for record in caplog.records if record.exc_info or record.levelno >= logging.ERROR] == []


# What a page may send.

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
ODD = st.sampled_from(
    [-1, 2**53, 10**400, 1e308, "", "\ud800", "w" * 3000, ["w"] * 99, {"a": {}}, True, None, "die\x00"]
)


@st.composite
def spoiled(draw):
    """A good message with a field changed, added or taken away."""
    message = json.loads(draw(st.sampled_from(GOOD)).model_dump_json())
    field = draw(st.sampled_from(sorted(message)) | st.text(max_size=6))
    if draw(st.booleans()):
        message.pop(field, None)
    else:
        message[field] = draw(ODD | JSON)
    return json.dumps(message)


@st.composite
def cut(draw):
    """A good message with a piece of its text taken out or doubled."""
    text = draw(st.sampled_from(GOOD)).model_dump_json()
    start, end = sorted(draw(st.tuples(*[st.integers(0, len(text))] * 2)))
    return (
        text[:start] + draw(st.sampled_from(["", text[start:end] * 2, "\x00", "[" * 5000, '{"a":' * 999])) + text[end:]
    )


MESSAGES = st.one_of(st.text(), st.binary(max_size=64), JSON.map(json.dumps), spoiled(), cut())


def refuses(message):
    """Whether the protocol has no use for a message."""
    try:
        protocol.parse(message)
    except (protocol.ProtocolError, TypeError):
        return True
    return False


async def until_closed(page):
    """Every message until the server closes."""
    heard = []
    with contextlib.suppress(websockets.ConnectionClosed):
        while True:
            heard.append(json.loads(await page.recv()))
    return heard


async def talk_to(client, messages):
    """Say these after a hello; what was heard until the connection ended, and its close code."""
    async with client.page() as page:
        await hear(page, "live")
        with contextlib.suppress(websockets.ConnectionClosed):
            for message in messages:
                await page.send(message)
            await say(page, type="leave")
        async with asyncio.timeout(30):
            return await until_closed(page), page.close_code


async def test_every_wrong_message_gets_an_error_and_nobody_else_notices(caplog):
    messages = [one for one in examples(MESSAGES, 400) if isinstance(one, bytes) or refuses(one)]
    assert len(messages) > 250
    async with serving() as client, calm_viewer(client, caplog):
        for start in range(0, len(messages), 100):
            said = messages[start : start + 100]
            heard, code = await talk_to(client, said)
            errors = [one for one in heard if one["type"] == "error"]
            assert len(errors) == len(said) and code == 1000 and heard[-1]["type"] == "ended"
            assert all(one["message"] and len(one["message"]) < 400 for one in errors)


# What a player may offer.

WITH_DATA = (Path(__file__).parent / "data" / "offer.sdp").read_bytes().decode()
OFFER = WITH_DATA[: WITH_DATA.index("m=application")].replace("BUNDLE 0 1 2", "BUNDLE 0 1")
STRANGE_LINES = st.sampled_from(
    [
        "m=video 9 UDP/TLS/RTP/SAVPF 96",
        "m=video 9 RTP/AVP 96",
        "m=audio 9 UDP/TLS/RTP/SAVPF 0",
        "m=application 9 UDP/DTLS/SCTP webrtc-datachannel",
        "m=text 99999 UDP x",
        "m=video 0 UDP/TLS/RTP/SAVPF 96",
        "m=",
        "a=group:BUNDLE 0 1 2 nobody",
        "a=group:LS 7",
        "a=mid:1",
        "a=mid:" + "x" * 999,
        "a=rtpmap:96 VP8/0",
        "a=rtpmap:96 VP8/90000/9",
        "a=rtpmap:500 VP8/90000",
        "a=rtpmap:96 H266/90000",
        "a=rtpmap:97 rtx/90000",
        "a=fmtp:97 apt=97",
        "a=fmtp:96 profile-level-id=zz;packetization-mode=9",
        "a=fmtp:102 profile-level-id=;;==",
        "a=rtcp-fb:* nack",
        "a=rtcp-fb:96 goog-remb goog-remb",
        "a=extmap:0 urn:ietf:params:rtp-hdrext:sdes:mid",
        "a=extmap:300 http://www.webrtc.org/experiments/rtp-hdrext/playout-delay",
        "a=extmap:15 http://www.webrtc.org/experiments/rtp-hdrext/playout-delay",
        "a=extmap:x y",
        "a=ssrc:1 cname:x",
        "a=ssrc-group:FID 1",
        "a=simulcast:recv h;m;l",
        "a=setup:passive",
        "a=setup:holdconn",
        "a=fingerprint:md5 00",
        "a=fingerprint:sha-256 00:11",
        "a=ice-lite",
        "a=ice-ufrag:" + "u" * 300,
        "a=ice-pwd:p",
        "a=ice-options:renomination",
        "a=candidate:1 1 udp 1 203.0.113.1 9 typ host",
        "a=candidate:1 1 tcp 1 127.0.0.1 9 typ host tcptype active",
        "a=candidate:1 1 udp 99999999999999 ::1 70000 typ srflx raddr x rport y",
        "a=candidate:1 9 udp 1 127.0.0.1 0 typ relay",
        "a=candidate:1 1 udp 1 nobody.invalid 9 typ host",
        "a=candidate:",
        "a=rtcp:",
        "a=sctp-port:99999",
        "a=sctpmap:5000 webrtc-datachannel 99999",
        "a=sendonly",
        "a=inactive",
        "a=sendrecv",
        "c=IN IP4 nowhere",
        "c=IN IP6 ::",
        "o=-",
        "v=1",
        "s=" + "s" * 5000,
        "\x00",
        "a",
        "=",
    ]
)
STRANGE_WORDS = st.sampled_from(["", "-1", "0", "65536", "9" * 40, "x", "\u20ac", "*", "127.0.0.1", "a=b", "VP8", "%s"])


@st.composite
def mangled(draw):
    """A real offer with up to six lines changed, moved, doubled, replaced or cut off."""
    lines = OFFER.splitlines()
    for _ in range(draw(st.integers(1, 6))):
        at, deed = draw(st.integers(0, len(lines) - 1)), draw(st.integers(0, 6))
        if deed == 0:
            del lines[at]
        elif deed == 1:
            lines.insert(at, draw(STRANGE_LINES))
        elif deed == 2:
            lines[at] = draw(STRANGE_LINES)
        elif deed == 3:
            words = lines[at].split(" ")
            words[draw(st.integers(0, len(words) - 1))] = draw(STRANGE_WORDS)
            lines[at] = " ".join(words)
        elif deed == 4:
            lines.insert(draw(st.integers(0, len(lines) - 1)), lines[at])
        elif deed == 5:
            lines[at] = lines[at].replace(":", draw(st.sampled_from(["", "::", ": "])), 1)
        elif draw(st.integers(0, 4)) == 0:
            lines = lines[: max(9, at)]
    return "\r\n".join(lines) + "\r\n"


def with_candidates(count):
    line = "a=candidate:{} 1 udp 2113937151 192.0.2.{} {} typ host\r\n"
    added = "".join(line.format(number, number % 250, 1024 + number) for number in range(count))
    return OFFER.replace("a=ice-ufrag", added + "a=ice-ufrag", 1)


BAD_OFFERS = {
    "nothing": "",
    "a word": "hello",
    "zeros": "\x00" * 1000,
    "too long": OFFER + "a=x\r\n" * 20_000,
    "60 kB of one line": "v=0\r\na=" + "x" * 60_000 + "\r\n",
    "a thousand media": "v=0\r\n" + "m=video 9 UDP/TLS/RTP/SAVPF 96\r\n" * 1000,
    "a thousand codecs": OFFER.replace(" 96 97", " 96" * 1000 + " 97", 1) + "a=rtpmap:127 X/1\r\n" * 1000,
    "too many candidates": with_candidates(800),
    "a data channel": WITH_DATA,
    "a bundle of others": OFFER.replace("BUNDLE 0 1", "BUNDLE 0 7"),
    "one name twice": OFFER.replace("a=mid:1", "a=mid:0"),
    "no video": OFFER[: OFFER.index("m=video")],
    "an answer": OFFER.replace("setup:actpass", "setup:active").replace("recvonly", "sendonly"),
    "strange codecs only": OFFER.replace("VP8/", "VP7/").replace("H264/", "H266/"),
}


async def try_offer(client, offer):
    """The status of an offer; one that was answered is taken back."""
    answer = await client.post("/whep?prompt=blue", offer.encode("utf-8", "replace"))
    if answer.status_code == 201:
        assert (await client.http.delete(answer.headers["location"])).status_code == 200
    else:
        assert answer.text.count("\n") == 1 and 20 < len(answer.text) < 300
    return answer.status_code


async def test_every_strange_offer_gets_a_proper_status_and_leaves_nothing(caplog):
    offers = examples(mangled(), 100)
    async with serving() as client, calm_viewer(client, caplog):
        assert await try_offer(client, OFFER) == 201 and await try_offer(client, with_candidates(9)) == 201
        statuses = {name: await try_offer(client, offer) for name, offer in BAD_OFFERS.items()}
        assert statuses.pop("too long") == 413
        assert set(statuses.values()) == {400}, statuses
        told = Counter([await try_offer(client, offer) for offer in offers])
        assert set(told) <= {201, 400, 413}
        assert min(told[201], told[400]) > 10


# Who says nothing, and who does not listen.


def raw(client, receive_buffer=None):
    """A plain socket that is connected to the server."""
    made = socket.socket()
    if receive_buffer:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    made.connect(("127.0.0.1", client.port))
    made.setblocking(False)
    return made


async def is_closed(one, seconds=8):
    """Read what comes until the server ends the connection; False when it does not."""
    try:
        async with asyncio.timeout(seconds):
            while await asyncio.get_running_loop().sock_recv(one, 65536):
                pass
    except ConnectionError:
        pass
    except TimeoutError:
        return False
    finally:
        one.close()
    return True


UPGRADE = (
    b"GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)


def masked(payload, opcode=1):
    """A client's frame of a WebSocket, with the mask 0."""
    length = bytes([0x80 | len(payload)]) if len(payload) < 126 else b"\xfe" + len(payload).to_bytes(2, "big")
    return bytes([0x80 | opcode]) + length + bytes(4) + payload


HALF_OPEN = {
    "nothing": b"",
    "half a head": b"GET /ws HTTP/1.1\r\nHost",
    "half a handshake": UPGRADE[:-2],
    "no hello": UPGRADE,
    "half a frame": UPGRADE + masked(b"x" * 100)[:20],
    "half a body": b"POST /whep HTTP/1.1\r\nHost: x\r\nContent-Type: application/sdp\r\nContent-Length: 99\r\n\r\nv=0",
    "another protocol": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),
    "no protocol": b"\x00" * 100,
}


async def test_who_connects_and_says_nothing_is_shut_out(caplog, monkeypatch):
    for name in ("serve.PONG_SECONDS", "doors.CLOSE_SECONDS", "serve.KEEP_ALIVE_SECONDS"):  # asked for at the start
        monkeypatch.setattr(f"stream.{name}", 1.5)
    async with serving() as client, calm_viewer(client, caplog):
        for name in ("doors.HEAD_SECONDS", "server.HELLO_SECONDS", "whep.BODY_SECONDS"):
            monkeypatch.setattr(f"stream.{name}", 0.7)
        sockets = {name: [raw(client) for _ in range(8)] for name in HALF_OPEN}
        for name, some in sockets.items():
            for one in some:
                await asyncio.get_running_loop().sock_sendall(one, HALF_OPEN[name])
        closed = {name: await asyncio.gather(*map(is_closed, some)) for name, some in sockets.items()}
        assert {name for name, some in closed.items() if not all(some)} == set()


async def test_who_does_not_read_is_shut_out_however_much_is_asked_for(caplog, monkeypatch):
    monkeypatch.setattr("stream.serve.UNREAD_SECONDS", 1)
    async with serving() as client, calm_viewer(client, caplog):
        loop, before = asyncio.get_running_loop(), await alive()
        pages, files = [raw(client, 2048) for _ in range(3)], [raw(client, 2048) for _ in range(3)]
        for one in pages:
            await loop.sock_sendall(one, UPGRADE + masked(json.dumps(HELLO).encode()))
        for one in files:
            await loop.sock_sendall(one, b"GET /style.css HTTP/1.1\r\nHost: x\r\n\r\n" * 200)
        for _ in range(100):  # each is answered with an error
            for one in pages:
                with contextlib.suppress(OSError):
                    await asyncio.wait_for(loop.sock_sendall(one, masked(b"x" * 9) * 20), 0.2)
            await asyncio.sleep(0.01)
        gone = (await alive())["Connection"] - before["Connection"]
        async with asyncio.timeout(15):
            while gone or client.service.hub._line.waiting:
                await asyncio.sleep(0.2)
                gone = (await alive())["Connection"] - before["Connection"]
        for one in pages + files:
            one.close()


# Who comes and goes, and who will not stop.


async def reads_and_leaves(client):
    async with client.page(prompt="blue") as page:
        await hear(page, "welcome")
        await say(page, type="keys", seq=1, held=["w"])
        await hear(page, "received")


async def breaks_off(client):
    async with client.page(prompt="blue") as page:
        await hear(page, "welcome")
        page.transport.abort()


async def plays_and_leaves(client):
    player = Player()
    answer = await client.post("/whep?prompt=blue", await player.offer())
    if answer.status_code == 201:
        await player.take(answer.text)
        with contextlib.suppress(TimeoutError):
            await player.frames_there(2, seconds=5)
        await client.http.delete(answer.headers["location"])
    await player.connection.close()
    return answer.status_code


async def offers_and_vanishes(client):
    return (await client.post("/whep?prompt=blue", OFFER)).status_code


async def asks_and_vanishes(client):
    return (await client.http.post("/api/sessions", json={"prompt": "blue"})).status_code


async def test_fifty_who_come_and_go_leave_nothing_behind(caplog, monkeypatch):
    visits = [reads_and_leaves, breaks_off, plays_and_leaves, offers_and_vanishes, asks_and_vanishes]
    async with serving({"slots": 4}) as client, calm_viewer(client, caplog):
        monkeypatch.setattr("stream.hub.GRACE_SECONDS", 1.0)
        monkeypatch.setattr("stream.webrtc.CONNECT_SECONDS", 1.0)
        for _ in range(10):
            statuses = await asyncio.gather(*(visit(client) for visit in visits))
            assert set(statuses[2:]) <= {201, 503}
        await until(lambda: len(client.service.hub._viewers) == 1)


async def floods(client):
    async with client.page(prompt="blue") as page:
        with contextlib.suppress(websockets.ConnectionClosed):
            for seq in range(2 * server.FLOOD):
                await say(page, type="keys", seq=seq, held=["w"])
        await until_closed(page)


async def test_floods_of_messages_requests_and_connections_are_cut_off(caplog, monkeypatch):
    monkeypatch.setattr("stream.doors._counted_as", lambda host: host)
    async with serving() as client, calm_viewer(client, caplog):
        flood = asyncio.gather(*(floods(client) for _ in range(3)))
        await asyncio.sleep(0.5)
        sockets = [raw(client) for _ in range(100)]
        tasks = [asyncio.ensure_future(is_closed(one, seconds=30)) for one in sockets]
        await until(lambda: sum(task.done() and task.result() for task in tasks) >= 100 - SOCKETS_PER_ADDRESS)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await until(lambda: client.service.doors.sockets.open.total() < SOCKETS_PER_ADDRESS - 40)
        answers = await asyncio.gather(*(client.post("/whep", "x") for _ in range(40)))
        assert {answer.status_code for answer in answers} == {400}
        await flood


async def test_every_wrong_message_to_a_picture_over_a_websocket_ends_it_with_a_reason(caplog):
    async with serving() as client, calm_viewer(client, caplog), client.page() as page:
        token = (await hear(page, "welcome"))["token"]
        await hear(page, "live")
        watching = json.dumps({"type": "watch", "token": token, "codecs": ["VP8"]})
        for number, message in enumerate(examples(MESSAGES, 60)):
            async with websockets.connect(f"ws://127.0.0.1:{client.port}/frames") as socket:
                if number % 2:
                    await socket.send(watching)
                with contextlib.suppress(websockets.ConnectionClosed):
                    await socket.send(message)
                    async with asyncio.timeout(15):
                        while True:
                            await socket.recv()
                assert socket.close_code == 4000 and socket.close_reason
        await say(page, type="leave")
        await hear(page, "ended")
