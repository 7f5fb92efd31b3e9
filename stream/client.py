"""A viewer without a browser: what the page does, in Python, into a video file. The reference for other clients.

It says hello on /ws, waits in line, fetches the picture by WHEP, holds keys by the frames that it has seen, and comes
back with its token when the connection breaks. To begin with a picture it sends that by HTTP and says `restart`.
"""

import asyncio
import contextlib
import json
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urljoin, urlsplit

import av
import websockets
from aiortc import RTCConfiguration, RTCIceServer, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError, MediaStreamTrack
from pydantic import Field, TypeAdapter, ValidationError

from pipeline.video_file import VideoFile, check_output
from stream import protocol

TRIES = 6
FIRST_DELAY_SECONDS, LONGEST_DELAY_SECONDS = 0.5, 15.0
REQUEST_SECONDS = 15.0
LAST_WORD_SECONDS = 2.0
NO_WORDS = "this place"
"""What is asked for until a picture is there that says by itself what to see."""
RESEND_SECONDS = protocol.KEYS_HELD_SECONDS / 5
_TICKS = 90_000
_MESSAGES: TypeAdapter[protocol.FromServer] = TypeAdapter(Annotated[protocol.FromServer, Field(discriminator="type")])


class Over(Exception):
    """The server ended, parked or refused the session; the text is its reason."""


@dataclass(frozen=True)
class Wish:
    """What to watch: `walk` is the keys held in each video frame seen, from the first; `frames` how many to see.

    `image` is a picture to begin with, as its file is; with one `prompt` may be empty. `access` is the server's
    token, where it asks for one.
    """

    prompt: str
    frames: int
    seed: int | None = None
    walk: tuple[frozenset[str], ...] = ()
    image: bytes | None = field(default=None, repr=False)
    access: str | None = field(default=None, repr=False)


def check_url(url: str) -> str:
    """The page's address, as others are joined to it. Raises ValueError for what is none."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ValueError(f"{url!r} is no address of a server; it must look like http://localhost:8080")
    return url if parts.path.endswith("/") else url + "/"


async def watch(url: str, wish: Wish, out: Path, say: Callable[[str], None] = lambda line: None) -> int:
    """Write the first `wish.frames` frames that arrive to `out`; how many there are.

    `say` hears how it goes, a line at a time. Raises ValueError for an address or a file name that cannot be, for a
    server that is out of reach and for a session that ends before.
    """
    check_output(out)
    address = check_url(url)
    with Recording(out) as recording:
        viewer = _Viewer(address, wish, recording, say)
        try:
            await viewer.run()
        except Over as over:
            raise ValueError(str(over)) from None
    return recording.frames


class Recording:
    """An H.264 file with each frame at the time that the server gave it. Playable whenever it is closed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: VideoFile | None = None
        self._shift: int | None = None
        self._last = -1
        self.frames = 0

    def begin_again(self) -> None:
        """What follows has another clock: it goes on where the file ends."""
        self._shift = None

    def write(self, frame: av.VideoFrame, fps: int) -> None:
        """Add a frame; one that is not later than the one before is put just after it. ValueError when it cannot be."""
        if self._file is None:
            self._file = VideoFile(self._path, fps, frame.height, frame.width, Fraction(1, _TICKS))
        ticks = round(frame.pts * frame.time_base * _TICKS)
        if self._shift is None:
            self._shift = (self._last + _TICKS // fps if self.frames else 0) - ticks
        self._last = max(ticks + self._shift, self._last + 1)
        pixels = frame.reformat(format="yuv420p")
        pixels.pts, pixels.time_base, pixels.pict_type = self._last, Fraction(1, _TICKS), 0
        self._file.add(pixels)
        self.frames += 1

    def __enter__(self) -> "Recording":
        return self

    def __exit__(self, *exception: Any) -> None:
        if self._file is not None:
            self._file.__exit__(*exception)


class _Viewer:
    """One viewer, over as many connections as it takes."""

    def __init__(self, address: str, wish: Wish, recording: Recording, say: Callable[[str], None]) -> None:
        self._address, self._wish, self._recording, self._say = address, wish, recording, say
        self._welcome: protocol.Welcome | None = None
        self._picture: _Picture | None = None
        self._done, self._changed = asyncio.Event(), asyncio.Event()
        self._held: frozenset[str] = frozenset()
        self._seq = 0
        self._begins: int | None = None
        self._begun = wish.image is None
        self._failures = 0
        self._refused: str | None = None
        self._live: protocol.Live | None = None
        self._failed: BaseException | None = None

    async def run(self) -> None:
        """Until all frames are there. Raises Over; ValueError when the server is out of reach, and what the recording
        raises, once the slot is given back."""
        while not self._done.is_set():
            try:
                await self._visit()
            except (OSError, websockets.WebSocketException) as error:
                self._failures += 1
                if self._failures >= TRIES:
                    raise ValueError(f"{self._address} is out of reach ({error}); is the server up?") from None
                self._say(f"the connection broke ({error}); trying again")
                await asyncio.sleep(min(LONGEST_DELAY_SECONDS, FIRST_DELAY_SECONDS * 2**self._failures))
        if self._failed:
            raise self._failed

    async def _visit(self) -> None:
        """One connection, until it breaks or all is seen."""
        socket_address = urljoin(self._address, "ws").replace("http", "ws", 1)
        async with websockets.connect(socket_address) as socket:
            await self._send(socket, self._hello())
            work = [self._listen(socket), self._steer(socket), self._done.wait()]
            tasks = [asyncio.ensure_future(each) for each in work]
            try:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
                await self._send(socket, protocol.Leave())
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                await self._close_picture()

    def _hello(self) -> protocol.Hello:
        token = self._welcome.token if self._welcome else None
        wish = self._wish
        prompt = wish.prompt or NO_WORDS
        return protocol.Hello(version=protocol.VERSION, prompt=prompt, seed=wish.seed, token=token, access=wish.access)

    async def _send(self, socket: websockets.ClientConnection, message: protocol.FromClient) -> None:
        await socket.send(message.model_dump_json(exclude_none=True))

    async def _listen(self, socket: websockets.ClientConnection) -> None:
        while True:
            try:
                text = await asyncio.wait_for(socket.recv(), None if self._refused is None else LAST_WORD_SECONDS)
            except TimeoutError:
                raise Over(self._refused) from None
            try:
                message = _MESSAGES.validate_json(text)
            except ValidationError:
                raise Over(f"the server speaks another protocol than version {protocol.VERSION}") from None
            await self._hear(message)
            if isinstance(message, protocol.Welcome) and not self._begun:
                await self._send(socket, await self._begin_with_picture(message))

    async def _begin_with_picture(self, welcome: protocol.Welcome) -> protocol.Restart:
        """Send the picture; the message that the world is to begin again with it. Raises Over when it is refused."""
        endpoint = urljoin(self._address, f"api/sessions/{welcome.session}/image")
        headers = {"Content-Type": "image/*", "Authorization": f"Bearer {welcome.token}"}
        answer, _ = await _request("PUT", endpoint, self._wish.image, headers)
        self._begins = self._seq = self._seq + 1
        return protocol.Restart(seq=self._seq, prompt=self._wish.prompt, image=json.loads(answer)["image"])

    async def _hear(self, message: protocol.FromServer) -> None:
        match message:
            case protocol.Welcome():
                self._welcome = message
                self._seq = max(self._seq, message.seq or 0)
            case protocol.Received(seq=seq) if seq == self._begins and not self._begun:
                self._begun = True
                await self._open_picture()
            case protocol.Queued(place=place, waiting=waiting, reason=reason):
                self._live = None
                await self._close_picture()
                self._say(f"in line, {place} of {waiting}: {reason}")
            case protocol.Live():
                self._live = message
                await self._open_picture()
            case protocol.Scene() if message.unknown_words or message.guessed_words:
                self._say(told(message))
            case protocol.Parked(reason=reason, by_itself=True):
                raise ConnectionError(reason)
            case protocol.Ended(reason=reason) | protocol.Parked(reason=reason) | protocol.Error(message=reason):
                raise Over(reason)

    async def _steer(self, socket: websockets.ClientConnection) -> None:
        """Tell the keys when they change, and again while any is held."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), RESEND_SECONDS)
            if self._changed.is_set():
                self._changed.clear()
                self._seq += 1
            elif not self._held:
                continue
            await self._send(socket, protocol.Keys(seq=self._seq, held=tuple(sorted(self._held))))

    # The picture.

    async def _open_picture(self) -> None:
        assert self._welcome is not None, "live comes after welcome"
        if self._picture is None and self._live and self._begun:
            self._say(f"live, with the seed {self._live.seed}")
            self._recording.begin_again()
            self._picture = _Picture(self._welcome.ice_servers, self._take, self._fail)
            try:
                await self._picture.fetch(urljoin(self._address, "whep?session="), self._welcome.token)
            except Over as over:  # a session that has just ended has no picture: /ws says why
                self._refused = str(over)
                await self._close_picture()

    async def _close_picture(self) -> None:
        picture, self._picture = self._picture, None
        if picture:
            await picture.close()

    async def _take(self, frame: av.VideoFrame) -> None:
        """A frame has come: keep it, and hold the keys of the next one."""
        if self._done.is_set():
            return
        assert self._welcome is not None, "a picture comes after welcome"
        self._failures = 0
        await asyncio.to_thread(self._recording.write, frame, self._welcome.fps)
        seen = self._recording.frames
        held = self._wish.walk[seen - 1] if seen <= len(self._wish.walk) else frozenset()
        if held != self._held:
            self._held = held
            self._changed.set()
        if seen >= self._wish.frames:
            self._done.set()

    def _fail(self, error: BaseException) -> None:
        """A frame could not be taken: nothing more is to be seen, and run() says why."""
        self._failed = error
        self._done.set()


class _Picture:
    """One WebRTC connection that receives; `take` gets each frame, and `fail` what it raised."""

    def __init__(
        self,
        servers: tuple[protocol.IceServer, ...],
        take: Callable[[av.VideoFrame], Any],
        fail: Callable[[BaseException], None],
    ) -> None:
        ice = [RTCIceServer(list(one.urls), one.username, one.credential) for one in servers]
        self._connection = RTCPeerConnection(RTCConfiguration(iceServers=ice))
        self._take, self._fail, self._location = take, fail, ""
        self._connection.on("track", self._begin)
        self._receiving: asyncio.Task[None] | None = None

    async def fetch(self, endpoint: str, token: str) -> None:
        """POST an offer with the session's token. Raises Over with the server's words for a refusal, or OSError."""
        self._connection.addTransceiver("video", direction="recvonly")
        await self._connection.setLocalDescription(await self._connection.createOffer())
        headers = {"Content-Type": "application/sdp", "Authorization": f"Bearer {token}"}
        answer, self._location = await _request("POST", endpoint, self._connection.localDescription.sdp, headers)
        await self._connection.setRemoteDescription(RTCSessionDescription(answer, "answer"))

    def _begin(self, track: MediaStreamTrack) -> None:
        self._receiving = asyncio.ensure_future(self._receive(track))
        self._receiving.add_done_callback(self._received)

    async def _receive(self, track: MediaStreamTrack) -> None:
        with contextlib.suppress(MediaStreamError):
            while True:
                await self._take(await track.recv())

    def _received(self, receiving: asyncio.Task[None]) -> None:
        """No one awaits the task: what ended it must be handed on, or the viewer waits for ever."""
        if not receiving.cancelled() and (error := receiving.exception()):
            self._fail(error)

    async def close(self) -> None:
        """End the connection and say so."""
        if self._receiving:
            self._receiving.cancel()
        await self._connection.close()
        if self._location:
            with contextlib.suppress(OSError, Over):
                await _request("DELETE", self._location)


async def _request(
    method: str, url: str, body: str | bytes | None = None, headers: dict[str, str] | None = None
) -> tuple[str, str]:
    """An answer's text, and the address in its Location header. Raises Over for a refusal, OSError for no answer."""
    data = body.encode() if isinstance(body, str) else body
    request = urllib.request.Request(url, data, headers or {}, method=method)

    def send() -> tuple[str, str]:
        with urllib.request.urlopen(request, timeout=REQUEST_SECONDS) as answer:
            return answer.read().decode(), urljoin(url, answer.headers.get("Location", ""))

    try:
        return await asyncio.to_thread(send)
    except urllib.error.HTTPError as error:
        raise Over(_sentence(error.read(2000).decode(errors="replace").strip()) or str(error)) from None


def _sentence(body: str) -> str:
    """What a refusal says: plain text, or the `detail` of a JSON object."""
    try:
        return str(json.loads(body)["detail"])
    except (ValueError, TypeError, KeyError):
        return body


def told(scene: protocol.Scene) -> str:
    """How the prompt was taken, in words."""
    guessed = [f"took {word} for {meaning}" for word, meaning in scene.guessed_words or ()]
    unknown = [f"not understood: {', '.join(scene.unknown_words)}"] if scene.unknown_words else []
    return "; ".join([f"shown: {scene.text}", *guessed, *unknown])
