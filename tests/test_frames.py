"""stream/frames.py: the picture over a WebSocket, and in a page that no WebRTC reaches."""

import asyncio
import contextlib
import json
import queue
import threading

import av
import numpy as np
import pytest
import websockets
from browser import browser, open_page
from serving import Player, hear, say, serving, until

from stream import frames
from stream.codec import LiveEncoder
from stream.frames import AHEAD_SECONDS, HEADER, KEY, OnItsWay, check_watch

__all__ = ["browser"]


class Watcher:
    """A viewer's /frames, with the decoders that a browser has."""

    def __init__(self, socket):
        self.socket, self.flags = socket, []
        self.decoder = None

    async def picture(self):
        said = json.loads(await self.socket.recv())
        self.decoder = av.CodecContext.create({"VP8": "vp8", "H264": "h264"}[said["codec"]], "r")
        return said

    async def frame(self, seconds=5):
        """The next frame, not yet answered: its time and its picture."""
        message = await asyncio.wait_for(self.socket.recv(), seconds)
        flags, pts = HEADER.unpack_from(message)
        self.flags.append(flags)
        (picture,) = self.decoder.decode(av.Packet(message[HEADER.size :]))
        return pts, picture.to_ndarray(format="rgb24")

    async def see(self, pts):
        await self.socket.send(json.dumps({"type": "seen", "pts": pts}))


@contextlib.asynccontextmanager
async def watching(client, token, codecs=("VP8", "H264")):
    async with websockets.connect(f"ws://127.0.0.1:{client.port}/frames") as socket:
        await socket.send(json.dumps({"type": "watch", "token": token, "codecs": codecs}))
        yield Watcher(socket)


@pytest.mark.parametrize("codecs", [("AV1", "H264"), ("VP8", "H264")])
async def test_a_world_is_seen_and_steered_over_a_websocket(codecs):
    async with serving() as client, client.page() as page:
        token = (await hear(page, "welcome"))["token"]
        async with watching(client, token, codecs) as watcher:
            said = await watcher.picture()
            assert (said["codec"], said["width"], said["height"]) == (codecs[-1] if "AV1" in codecs else "VP8", 160, 96)
            times = []
            for count in range(24):
                pts, image = await watcher.frame()
                times.append(pts)
                await watcher.see(pts)
                if count == 4:
                    await say(page, type="keys", seq=1, held=["l"])
            assert watcher.flags == [KEY] + 23 * [0]
            steps, pacer = np.diff(times), client.service.hub.find(token).pacer
            moved = pacer.late + pacer.unfetched  # by a machine that was busy
            assert np.all(steps >= 90_000 // 16) and np.sum(steps > 90_000 // 16) <= moved
            red, green, _ = image[40].mean(axis=0)
            assert red > green + 60
            applied = await hear(page, "applied")
            assert applied["rtp"] in times, "so that the page can tell when it was on the screen"


async def test_a_viewer_who_answers_no_frame_gets_no_more_and_goes_on_from_there():
    async with serving() as client, client.page() as page:
        token = (await hear(page, "welcome"))["token"]
        async with watching(client, token) as watcher:
            await watcher.picture()
            most = round(16 * AHEAD_SECONDS)
            pending = [(await watcher.frame())[0] for _ in range(most)]
            with pytest.raises(TimeoutError):
                await watcher.frame(0.7)
            viewer = client.service.hub.find(token)
            await until(lambda: 4 * viewer.made >= viewer.granted)
            made = viewer.made
            await asyncio.sleep(0.5)
            assert viewer.made == made, "no one looks, so nothing is made"
            for pts in pending:
                await watcher.see(pts)
            await watcher.frame()
            assert KEY not in watcher.flags[1:]
            await watcher.socket.send('{"type": "key"}')
            for _ in range(most):  # those that were on their way come first
                if watcher.flags[-1] != KEY:
                    await watcher.see((await watcher.frame())[0])
            assert watcher.flags[-1] == KEY


async def test_a_viewer_that_falls_silent_is_noticed_and_a_newer_picture_takes_the_place(monkeypatch):
    monkeypatch.setattr("stream.frames.SILENCE_SECONDS", 0.5)
    player = Player()
    async with serving() as client, client.page() as page:
        token = (await hear(page, "welcome"))["token"]
        async with watching(client, token) as silent:
            await silent.picture()
            await asyncio.wait_for(ended(silent), 5)
        async with watching(client, token) as first:
            await first.picture()
            answer = await client.post(f"/whep?session={token}", await player.offer())
            await player.take(answer.text)
            await asyncio.wait_for(ended(first), 5)
            await player.frames_there(4)
        await player.connection.close()


async def ended(watcher):
    with contextlib.suppress(websockets.ConnectionClosed):
        while True:
            await watcher.socket.recv()


async def test_who_says_it_wrong_is_told_what_would_be_right(monkeypatch):
    async with serving() as client, client.page() as page:
        token = (await hear(page, "welcome"))["token"]
        for first, then, says in (
            ("junk", None, "first"),
            ({"type": "watch", "token": "x" * 32, "codecs": ["VP8"]}, None, "no such session"),
            ({"type": "watch", "token": token, "codecs": ["AV1"]}, None, "VP8, H264"),
            ({"type": "watch", "token": token, "codecs": ["VP8"]}, "junk", "for each frame"),
            (None, None, "within 0 seconds"),
        ):
            if first is None:
                monkeypatch.setattr("stream.server.HELLO_SECONDS", 0.3)
            async with websockets.connect(f"ws://127.0.0.1:{client.port}/frames") as socket:
                for text in (first, then):
                    if text is not None:
                        await socket.send(text if isinstance(text, str) else json.dumps(text))
                with contextlib.suppress(websockets.ConnectionClosed):
                    while True:
                        await socket.recv()
                assert socket.close_code == 4000 and says in socket.close_reason
        foreign = {"Origin": "https://elsewhere.example.org"}
        with pytest.raises(websockets.InvalidStatus):
            await websockets.connect(f"ws://127.0.0.1:{client.port}/frames", additional_headers=foreign)
        await say(page, type="keys", seq=1, held=[])
        await hear(page, "received")


def test_the_codec_is_the_servers_favourite_among_those_that_the_viewer_has():
    text = json.dumps({"type": "watch", "token": "x" * 32, "codecs": ["H264", "VP8"]})
    assert check_watch(text, "VP8") == ("x" * 32, "VP8") and check_watch(text, "H264")[1] == "H264"


def test_so_much_is_on_its_way_as_the_link_delays_and_half_a_second_more(clock):
    way = OnItsWay(16, clock)
    for pts in range(8):
        assert not way.is_full
        way.leave(pts)
    assert way.is_full and way.silent_seconds == 0
    clock.advance(1)
    way.see(3)
    assert not way.is_full and way.worst == 0
    for pts in range(8, 8 + 20):
        way.leave(pts)
    assert way.is_full, "a link that delays by a second has 24 frames on it"
    clock.advance(1.5)
    assert way.silent_seconds == 1.5
    way.see(99)
    way.see(27)
    assert not way.is_full and way.silent_seconds == 0 and way.worst == pytest.approx(0.5)


async def test_a_full_link_is_sent_less(monkeypatch):
    monkeypatch.setattr(frames, "REPORT_SECONDS", 0.05)
    async with serving() as client, client.page() as page:
        token = (await hear(page, "welcome"))["token"]
        async with watching(client, token) as watcher:
            await watcher.picture()
            ((shown, _),) = client.service._peers.values()
            before = shown.bitrate
            await until(lambda: shown.bitrate < before / 2)


@pytest.fixture
def address():
    """Of a server that runs in a thread of its own, for the test drives a browser in this one."""
    ports, ends = queue.Queue(), []

    async def serve():
        ends.extend((asyncio.get_running_loop(), asyncio.Event()))
        async with serving() as client:
            ports.put(client.port)
            await ends[1].wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    yield f"http://localhost:{ports.get(timeout=20)}"
    ends[0].call_soon_threadsafe(ends[1].set)
    thread.join()


# Candidates through a TURN server alone, and there is none: as where UDP does not pass.
NO_UDP = """
window.RTCPeerConnection = class extends RTCPeerConnection {
  constructor(options) { super({ ...options, iceTransportPolicy: "relay" }); }
};
const real = window.setTimeout;
window.setTimeout = (work, ms, ...all) => real(work, ms === 4000 ? 1000 : ms, ...all); // it need not hope for so long
"""
# How wide the canvas is when the page first says that the world is there: 300 before any frame.
WIDTH_AT_LIVE = """
addEventListener("DOMContentLoaded", () => new MutationObserver(() => {
  if (document.documentElement.dataset.state === "live") window.widthAtLive ??= document.getElementById("canvas").width;
}).observe(document.documentElement, { attributes: true, attributeFilter: ["data-state"] }));
"""
COLOUR = """() => {
  const { data } = document.getElementById("canvas").getContext("2d").getImageData(0, 80, 160, 1);
  const pixels = Array.from({ length: 160 }, (_, x) => [...data.slice(4 * x, 4 * x + 3)]);
  return pixels.sort((one, other) => Math.min(...one) - Math.min(...other))[80]; // not the white bar
}"""


def page_until(page, claim):
    """The page's own policy allows no wait_for_function."""
    for _ in range(400):
        if claim():
            return
        page.wait_for_timeout(50)
    raise AssertionError("it did not come true")


@pytest.mark.browser
def test_where_webrtc_finds_no_way_the_page_takes_the_websocket_by_itself_and_says_why(browser, address):
    page = browser.new_context().new_page()
    faults = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.add_init_script(NO_UDP + WIDTH_AT_LIVE)
    page.goto(f"{address}/?prompt=red")
    page.wait_for_selector("html[data-state=live]", timeout=15_000)
    assert "WebRTC found no way" in page.get_attribute("#way", "title") and page.is_visible("#way")
    assert page.is_visible("#canvas") and page.is_hidden("#video")
    assert page.evaluate("widthAtLive") == 160, "there is no world before its picture"
    red, green, blue = page.evaluate(COLOUR)
    assert red > green + 60 and red > blue + 60
    page_until(page, lambda: float(page.inner_text("#fps").replace("–", "0")) > 12)
    page.keyboard.down("l")
    page_until(page, lambda: page.is_visible("#latency") and 0 < float(page.inner_text("#latency-ms")) < 3000)
    page.keyboard.up("l")
    page.keyboard.press(" ")
    page_until(page, lambda: page.inner_text("#state") == "paused")
    page.keyboard.press(" ")
    page.fill("#prompt", "green")
    page.press("#prompt", "Enter")
    page_until(page, lambda: page.evaluate(COLOUR)[1] > page.evaluate(COLOUR)[0] + 60)
    page.goto(f"{address}/?prompt=blue&via=ws")
    page.wait_for_selector("html[data-state=live]", timeout=15_000)
    assert "via=ws" in page.get_attribute("#way", "title") and not faults
    page.context.close()


class Server:
    """The server's side of /frames, as a test plays it to a page."""

    def __init__(self, page):
        self.said, self.socket, self.pts = [], None, 0
        self.encoder = LiveEncoder("VP8", 16)
        page.route_web_socket("**/frames", self.open)

    def open(self, socket):
        self.socket = socket
        socket.on_message(self.take)

    def take(self, text):
        self.said.append(json.loads(text))
        if self.said[-1]["type"] == "watch":
            picture = {"type": "picture", "codec": "VP8", "config": "vp8", "width": 320, "height": 192}
            self.socket.send(json.dumps(picture))
            self.send(self.frame(is_key=True), KEY)

    def frame(self, is_key=False):
        image = av.VideoFrame.from_ndarray(np.full((192, 320, 3), 120, np.uint8), "rgb24")
        return self.encoder.compress(image, is_key)[0]

    def send(self, data, flags=0):
        self.pts += 5625
        self.socket.send(HEADER.pack(flags, self.pts) + data)

    def of(self, kind):
        return [one for one in self.said if one["type"] == kind]


@pytest.mark.browser
def test_a_decoder_that_breaks_asks_for_a_key_frame_and_goes_on_and_a_closed_way_is_another_try(browser):
    page, script = open_page(browser, "/?via=ws")
    server = Server(page)
    script.wait(lambda: script.messages, "the page says hello")
    script.live()
    script.wait(lambda: server.of("seen"), "a key frame is seen")
    assert server.of("watch")[0]["token"] == "secret" and "VP8" in server.of("watch")[0]["codecs"]
    page.wait_for_selector("html[data-state=live]")
    server.send(b"\xff" * 40)
    script.wait(lambda: server.of("key"), "the broken decoder asks for a key frame")
    server.send(server.frame())
    server.send(server.frame(is_key=True), KEY)
    script.wait(lambda: server.of("seen")[-1]["pts"] == server.pts, "it goes on with the key frame")
    server.socket.close(code=4000, reason="The picture has ended.")
    script.wait(lambda: len(server.of("watch")) == 2, "the page asks again")
    assert len(script.of("hello")) == 1 and not page.faults
    page.context.close()


SLOW_TO_TELL = """VideoDecoder.isConfigSupported = () =>
  new Promise((resolve) => setTimeout(() => resolve({ supported: %s }), %d));"""


@pytest.mark.browser
def test_a_way_that_is_closed_before_the_browser_has_said_its_codecs_is_told_at_once(browser):
    page, script = open_page(browser, "/?via=ws")
    page.evaluate(SLOW_TO_TELL % ("true", 1000))
    page.route_web_socket("**/frames", lambda socket: socket.close(code=4000, reason="The picture has gone."))
    script.wait(lambda: script.messages, "the page says hello")
    script.live()
    told = "document.getElementById('veil-text').textContent.includes('The picture has gone.')"
    page.wait_for_function(told, timeout=5000)  # a picture that stands still is noticed after 8 seconds
    assert not page.faults
    page.context.close()


@pytest.mark.browser
def test_a_browser_without_the_codecs_is_told_so_by_the_page(browser):
    page, script = open_page(browser, "/?via=ws")
    page.evaluate(SLOW_TO_TELL % ("false", 0))
    server = Server(page)
    script.wait(lambda: script.messages, "the page says hello")
    script.live()
    page.wait_for_function("document.getElementById('veil-text').textContent.includes('neither VP8 nor H.264')")
    assert not server.of("watch") and not page.faults
    page.context.close()
