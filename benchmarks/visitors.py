"""Visitors of a server that cost little, so that many of them fit beside it: pages by /ws, and receivers that count
frames without decoding them.
"""

import asyncio
import contextlib
import json
import re
import signal
import subprocess
import sys
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import websockets
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription, rtcrtpreceiver

ROOT = Path(__file__).parent.parent
READY_SECONDS = 60
NEWEST = 256
"""Frames of which a receiver knows when they came."""


@contextlib.contextmanager
def served(command: list[str], **options: Any) -> Iterator[tuple[str, subprocess.Popen]]:
    """A server's process, `python -m ...`, that is ready: its address, and the process. `options` are Popen's."""
    whole = [sys.executable, "-m", *command]
    process = subprocess.Popen(whole, cwd=ROOT, stdout=subprocess.PIPE, text=True, **options)
    try:
        assert process.stdout is not None, "its output is read"
        for line in process.stdout:
            if found := re.match(r"Ready: (\S+)", line):
                yield found[1], process
                break
        else:
            raise SystemExit("the server did not become ready; its own reason is above")
    finally:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
        process.kill()


class Page:
    """A page's WebSocket; `token` and `watch_token` are there after welcome()."""

    def __init__(self, socket: Any) -> None:
        self._socket, self.token, self.watch_token = socket, "", ""

    async def hear(self, *kinds: str, seconds: float = 15.0) -> dict[str, Any]:
        """The next message of one of these types."""
        async with asyncio.timeout(seconds):
            while True:
                message = json.loads(await self._socket.recv())
                if message["type"] in kinds:
                    return message

    async def say(self, **message: Any) -> None:
        """Send a message."""
        await self._socket.send(json.dumps(message))

    async def welcome(self, **hello: Any) -> "Page":
        """Say hello, and be welcome. `hello` is what is not as usual in it."""
        await self.say(**{"type": "hello", "version": 1, "prompt": "a meadow", "seed": 7, **hello})
        heard = await self.hear("welcome")
        self.token, self.watch_token = heard["token"], heard["watch_token"]
        return self

    async def listen(self) -> None:
        """Hear whatever comes, as a page does, until it is closed."""
        with contextlib.suppress(websockets.ConnectionClosed):
            while True:
                await self._socket.recv()


@contextlib.asynccontextmanager
async def page_of(address: str, **hello: Any) -> AsyncIterator[Page]:
    """A page that is welcome, and closes at the end."""
    async with websockets.connect(address.replace("http", "ws", 1) + "/ws", compression=None) as socket:
        yield await Page(socket).welcome(**hello)


def _decode_nothing(loop: asyncio.AbstractEventLoop, frames: Any, *others: Any) -> None:
    """In place of aiortc's decoder, which runs in a thread of its own."""
    while frames.get():
        pass


class Receiver:
    """A WebRTC connection that takes a picture in; `at` has the monotonic second at which each frame was complete."""

    def __init__(self) -> None:
        assert hasattr(rtcrtpreceiver, "decoder_worker"), "aiortc has changed: its decoder is elsewhere"
        rtcrtpreceiver.decoder_worker = _decode_nothing
        self._connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self.at: list[float] = []
        self._newest: OrderedDict[int, float] = OrderedDict()
        self._came, self._location = asyncio.Event(), ""

    async def fetch(self, http: httpx.AsyncClient, query: str, token: str | None = None) -> bool:
        """POST an offer; False where the server says no."""
        transceiver = self._connection.addTransceiver("video", direction="recvonly")
        self._handle = transceiver.receiver._handle_rtp_packet
        transceiver.receiver._handle_rtp_packet = self._count  # type: ignore[method-assign]
        await self._connection.setLocalDescription(await self._connection.createOffer())
        headers = {"Content-Type": "application/sdp"} | ({"Authorization": f"Bearer {token}"} if token else {})
        answer = await http.post(f"/whep?{query}", content=self._connection.localDescription.sdp, headers=headers)
        if answer.status_code != 201:
            return False
        self._location = answer.headers["location"]
        await self._connection.setRemoteDescription(RTCSessionDescription(answer.text, "answer"))
        return True

    async def _count(self, packet: Any, arrival_time_ms: int) -> None:
        await self._handle(packet, arrival_time_ms)
        if packet.marker:  # the last one of a frame
            self.at.append(time.monotonic())
            self._newest[packet.timestamp] = self.at[-1]
            if len(self._newest) > NEWEST:
                self._newest.popitem(last=False)
            self._came.set()

    async def frames_there(self, count: int, seconds: float = 15.0) -> None:
        """Wait until so many frames have come."""
        async with asyncio.timeout(seconds):
            while len(self.at) < count:
                self._came.clear()
                await self._came.wait()

    async def when(self, rtp: int, seconds: float = 2.0) -> float | None:
        """When the frame with this RTP timestamp was complete; None where it is not in time, or too long ago."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while rtp not in self._newest:
                    self._came.clear()
                    await self._came.wait()
        return self._newest.get(rtp)

    async def close(self, http: httpx.AsyncClient) -> None:
        """Say that we leave, and close."""
        if self._location:
            await http.delete(self._location)
        await self._connection.close()


def usage(pid: int) -> dict[str, float]:
    """What a process has now: MB of memory, open files, threads, and the processor seconds that it used."""
    folder = Path(f"/proc/{pid}")
    status = dict(re.findall(r"^(\w+):\s+(\d+)", (folder / "status").read_text(), re.M))
    fields = (folder / "stat").read_text().rpartition(")")[2].split()
    return {
        "mb": round(int(status["VmRSS"]) / 1024, 1),
        "files": len(list((folder / "fd").iterdir())),
        "threads": int(status["Threads"]),
        "processor_seconds": (int(fields[11]) + int(fields[12])) / 100,
    }


def engine_of(pid: int) -> int:
    """The process id of a server's engine: its child with the most memory. ValueError where it has none."""
    held = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):  # a thread that ends meanwhile
            for child in map(int, (task / "children").read_text().split()):
                with contextlib.suppress(OSError, KeyError):  # and a child that does, or has no memory any more
                    held[child] = usage(child)["mb"]
    return max(held, key=lambda child: held[child])
