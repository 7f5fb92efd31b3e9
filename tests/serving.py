"""A server with the fake engine, in this process or in one of its own, and those who watch it: pages by /ws, and a
player by WHEP.

conftest.py has the fixtures `client`, `player` and `server`.
"""

import asyncio
import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import uvicorn
import websockets
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError

from stream.catalogue import Catalogue
from stream.pulse import waited_seconds
from stream.serve import configuration, listening
from stream.server import Service

TESTS = Path(__file__).parent
SERVE_FAKE = """
import sys
from pathlib import PosixPath
from stream.serve import listening, serve
if __name__ == "__main__":
    with listening({host!r}, 0) as listener:
        sys.exit(serve(listener, "fake_engine:build", {options}, **{settings}))
"""

OTHERS = [
    {"name": "large", "summary": "a large world", "width": 832, "height": 480, "fps": 16, "chunk_frames": 12}
    | {"image": "required", "camera": True, "memory_bytes": 10**11, "can_serve": False, "why": "it is too large"}
]
HELLO = {"type": "hello", "version": 1, "prompt": "red", "seed": 7}


class Player:
    """aiortc as a WHEP player."""

    def __init__(self):
        self.connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self.frames, self._came = [], asyncio.Event()
        self.connection.on("track", lambda track: asyncio.ensure_future(self._watch(track)))

    async def offer(self, *kinds):
        for kind in kinds or ("video",):
            self.connection.addTransceiver(kind, direction="recvonly")
        await self.connection.setLocalDescription(await self.connection.createOffer())
        return self.connection.localDescription.sdp

    async def take(self, answer):
        await self.connection.setRemoteDescription(RTCSessionDescription(answer, "answer"))

    async def _watch(self, track):
        try:
            while True:
                frame = await track.recv()
                self.frames.append((time.monotonic(), frame))
                self._came.set()
        except MediaStreamError:
            pass

    async def frames_there(self, count, seconds=30):
        async with asyncio.timeout(seconds):
            while len(self.frames) < count:
                self._came.clear()
                await self._came.wait()


class QuietServer(uvicorn.Server):
    """uvicorn without its own signal handlers, which belong to the main program."""

    async def main_loop(self):
        """Until it is told to end; uvicorn's own looks ten times a second."""
        ticks = itertools.count()
        while not await self.on_tick(next(ticks)):  # noqa: ASYNC110  uvicorn's way
            await asyncio.sleep(0.01)

    @contextlib.contextmanager
    def capture_signals(self):
        yield


class Client:
    """A server on a free port, and the ways to talk to it."""

    def __init__(self, service, port):
        self.service, self.port = service, port
        self.http = self._fresh_http()

    def _fresh_http(self):
        return httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.port}", timeout=10)

    async def hang_up(self):
        """Close the connections that HTTP keeps for the next request."""
        await self.http.aclose()
        self.http = self._fresh_http()

    @contextlib.asynccontextmanager
    async def page(self, **changes):
        async with websockets.connect(f"ws://127.0.0.1:{self.port}/ws") as page:
            await say(page, **{**HELLO, **changes})
            yield page

    async def post(self, path, offer, **headers):
        return await self.http.post(path, content=offer, headers={"Content-Type": "application/sdp", **headers})

    async def ready(self):
        async with asyncio.timeout(30):
            while (await self.http.get("/readyz")).status_code != 200:  # noqa: ASYNC110  only HTTP says so
                await asyncio.sleep(0.01)


async def say(page, **message):
    await page.send(json.dumps(message))


async def until(claim, seconds=15):
    """Wait until it holds, for what is told to no one."""
    async with asyncio.timeout(seconds):
        while not claim():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def stands_still(player, seconds=0.5):
    """Wait until no frame has come for so long."""
    async with asyncio.timeout(15):
        while True:
            before = len(player.frames)
            await asyncio.sleep(seconds)
            if len(player.frames) == before:
                return


async def hear(page, kind, seconds=30):
    """The next message of a type."""
    async with asyncio.timeout(seconds):
        while True:
            message = json.loads(await page.recv())
            if message["type"] == kind:
                return message


async def watch(client, player, token):
    """See the picture of the session with this token."""
    answer = await client.post(f"/whep?session={token}", await player.offer())
    assert answer.status_code == 201
    await player.take(answer.text)
    await player.frames_there(8)


@contextlib.asynccontextmanager
async def serving(engine=None, **options):
    """A client of a service with the fake engine, made with `engine`; `options` are the Service's."""
    listed = Catalogue((sys.executable, "-c", f"print({json.dumps(OTHERS)!r})"))
    service = Service("fake_engine:build", engine or {}, **{"catalogue": listed, **options})
    with listening("127.0.0.1", 0) as listener:
        server = QuietServer(configuration(service))
        task = asyncio.ensure_future(server.serve([listener]))
        made = Client(service, listener.getsockname()[1])
        async with asyncio.timeout(10):
            while not server.started:  # noqa: ASYNC110  uvicorn has no event for it
                await asyncio.sleep(0.01)
        try:
            await made.ready()
            yield made
        finally:
            await made.http.aclose()
            server.should_exit = True
            await task


class Server:
    """A server with the fake engine in a process of its own."""

    def __init__(self, folder, host="127.0.0.1", tls=None, sessions=None, log_prompts=False, **options):
        script = folder / "serve_fake.py"
        settings = {"tls": tls, "log_prompts": log_prompts, "sessions": sessions}
        script.write_text(SERVE_FAKE.format(options=options, host=host, settings=settings))
        paths = os.pathsep.join([str(TESTS.parent), str(TESTS)])
        self.process = subprocess.Popen(
            [sys.executable, script],
            env={**os.environ, "PYTHONPATH": paths},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def line(self):
        return self.process.stdout.readline()

    def children(self):
        """The living processes of this group but the server, as (number, command)."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != self.process.pid:
                try:
                    state, _, group = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
                    if int(group) == self.process.pid and state != "Z":
                        found.append((int(entry.name), (entry / "cmdline").read_text().replace("\0", " ")))
                except (FileNotFoundError, ProcessLookupError):
                    continue
        return found

    def end(self, number, seconds=2.0):
        """Send a signal to the whole group, as a terminal does; what was printed on stderr. TimeoutExpired when the
        server needs longer than `seconds`, but for those for which it waited for a processor."""
        waited = before = waited_seconds(self.process.pid)
        began = time.monotonic()
        os.killpg(self.process.pid, number)
        while True:
            try:
                return self.process.communicate(timeout=0.1)[1]
            except subprocess.TimeoutExpired:
                waited = max(waited, waited_seconds(self.process.pid))
                if time.monotonic() - began - (waited - before) > seconds:
                    raise

    def kill(self):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()
