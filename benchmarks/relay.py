"""A bad link in this process: what passes between a page and a server is delayed, lost and held back as told.

`Relay` stands before a server: pages are opened at its `address`, whose TCP it passes on, and their media is made to go
through UDP sockets of its own, since the candidates in WebRTC's answers are rewritten on the way (`guard`). Both ways
are alike, each with a rate of its own. TCP loses nothing: what would be lost comes a retransmission later.
"""

import asyncio
import contextlib
import random
import re
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import cast
from urllib.parse import urlsplit

from playwright.async_api import BrowserContext, Route

RETRANSMISSION_SECONDS = 0.2
"""Linux's least timeout: so much later than the delay a lost TCP segment comes."""
PIECE = 1400
"""Bytes of TCP that share a fate, as a packet's do."""
_CANDIDATE = re.compile(r"^(a=candidate:\S+ \d+ udp \d+) (\S+) (\d+) (typ host.*)$", re.MULTILINE | re.IGNORECASE)
_OFFERED = re.compile(r"^a=candidate:.*\r?\n", re.MULTILINE)


@dataclass(frozen=True)
class Shape:
    """What a link does each way: `delay` and the most that `jitter` adds to or takes from it in ms, `loss` in percent,
    `rate` in kbit/s (0: any), `queue` in ms of what waits at that rate before more is dropped."""

    delay: float = 0.0
    jitter: float = 0.0
    loss: float = 0.0
    rate: float = 0.0
    queue: float = 300.0

    def __post_init__(self) -> None:
        if min(self.delay, self.jitter, self.loss, self.rate, self.queue) < 0 or self.loss > 100:
            raise ValueError(f"the link is {self}; nothing of it can be below 0, nor the loss above 100 percent")

    @classmethod
    def parse(cls, text: str) -> "Shape":
        """The shape in "delay=40,jitter=10,loss=3,rate=1500". ValueError says what would be right."""
        names = [field.name for field in fields(cls)]
        found = {}
        for part in text.split(","):
            name, _, number = part.strip().partition("=")
            try:
                found[name] = float(number)
            except ValueError:
                name = ""
            if name not in names:
                raise ValueError(f"{part.strip()!r} says nothing of a link; write {', '.join(names)}, such as delay=40")
        return cls(**found)


NOTHING = Shape()


class Way:
    """One direction of a link: when, if at all, a packet that comes now leaves. `clock` is in seconds.

    Packets keep their order. `passed` and `dropped` count those that left and those that did not.
    """

    def __init__(self, shape: Shape, clock: Callable[[], float], chance: random.Random) -> None:
        self.shape, self._clock, self._chance = shape, clock, chance
        self._free = self._last = 0.0
        self.passed = self.dropped = 0

    def leaves(self, size: int, is_lossless: bool = False) -> float | None:
        """The second at which a packet of `size` bytes arrives at the other end; None where it does not."""
        now, shape = self._clock(), self.shape
        self._free = max(self._free, now)
        late = 0.0
        if self._chance.random() * 100 < shape.loss:
            if not is_lossless:
                self.dropped += 1
                return None
            late = RETRANSMISSION_SECONDS + shape.delay / 1000
        if shape.rate:
            if not is_lossless and self._free - now > shape.queue / 1000:
                self.dropped += 1
                return None
            self._free += 8 * size / (1000 * shape.rate)
        jitter = self._chance.uniform(-shape.jitter, shape.jitter)
        self._last = max(self._last, self._free + max(0.0, shape.delay + jitter) / 1000 + late)
        self.passed += 1
        return self._last


class _Delayed:
    """Calls `deliver` with each packet at its time, in order, on the running loop."""

    def __init__(self, way: Way, deliver: Callable[[bytes], None]) -> None:
        self._way, self._deliver = way, deliver
        self._loop = asyncio.get_running_loop()
        self._waits: deque[tuple[float, bytes]] = deque()

    def put(self, data: bytes, is_lossless: bool = False) -> float | None:
        """Send on; when it arrives, None where it is lost."""
        at = self._way.leaves(len(data), is_lossless)
        if at is not None:
            self._waits.append((at, data))
            self._loop.call_at(at, self._flush)
        return at

    def _flush(self) -> None:
        while self._waits and self._waits[0][0] <= self._loop.time() + 1e-4:
            self._deliver(self._waits.popleft()[1])


class _Datagrams(asyncio.DatagramProtocol):
    """One end of a UDP relay."""

    def __init__(self, take: Callable[[bytes, tuple], None]) -> None:
        self._take = take
        self.transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, address: tuple) -> None:
        self._take(data, address)

    def error_received(self, error: Exception) -> None:
        """A port that is not open any more: WebRTC notices by itself."""

    def send(self, data: bytes, address: tuple | None = None) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.sendto(data, address)


class UdpRelay:
    """A UDP port of ours in front of another one: its `port`, for one page."""

    def __init__(self, up: Way, down: Way) -> None:
        self._page: tuple | None = None
        self._up = _Delayed(up, lambda data: self._back.send(data))
        self._down = _Delayed(down, lambda data: self._page and self._front.send(data, self._page))
        self._front, self._back = _Datagrams(self._from_page), _Datagrams(lambda data, _: self._down.put(data) and None)
        self.port = 0

    async def open(self, host: str, port: int) -> "UdpRelay":
        """Listen beside `host`:`port`, and speak to that."""
        loop = asyncio.get_running_loop()
        front, _ = await loop.create_datagram_endpoint(lambda: self._front, local_addr=(host, 0))
        await loop.create_datagram_endpoint(lambda: self._back, remote_addr=(host, port))
        self.port = front.get_extra_info("sockname")[1]
        return self

    def _from_page(self, data: bytes, address: tuple) -> None:
        self._page = address
        self._up.put(data)

    def close(self) -> None:
        for end in (self._front, self._back):
            if end.transport is not None:
                end.transport.close()


class Relay:
    """Stands before the server at `address`; `seed` makes its chances the same each time."""

    def __init__(self, server: str, shape: Shape, seed: int = 0) -> None:
        parts = urlsplit(server)
        self._host, self._port = parts.hostname or "localhost", parts.port or 80
        clock, chance = asyncio.get_running_loop().time, random.Random(seed)
        self._shape = shape
        self.up, self.down = Way(shape, clock, chance), Way(shape, clock, chance)
        self._relays: list[UdpRelay] = []
        self._pumps: set[asyncio.Task[None]] = set()
        self.address = ""

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["Relay"]:
        """Pass on until the end."""
        listener = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.address = f"http://localhost:{listener.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            listener.close()
            for task in list(self._pumps):
                task.cancel()
            await asyncio.gather(*self._pumps, return_exceptions=True)
            for relay in self._relays:
                relay.close()

    @contextlib.contextmanager
    def rests(self) -> Iterator[None]:
        """Meanwhile the link is perfect."""
        self.up.shape = self.down.shape = replace(NOTHING)
        try:
            yield
        finally:
            self.up.shape = self.down.shape = self._shape

    async def guard(self, context: BrowserContext) -> None:
        """Let the pages of this context reach the server's media through here alone."""
        await context.route("**/whep?*", self._whep)

    async def _whep(self, route: Route) -> None:
        # The server must not find the page by itself: it is to hear of it through the relay.
        offer = _OFFERED.sub("", route.request.post_data or "")
        response = await route.fetch(post_data=offer)
        await route.fulfill(response=response, body=await self.rewritten(await response.text()))

    async def rewritten(self, answer: str) -> str:
        """The answer with a port of ours in place of each of the server's; candidates that are not hosts' go."""
        kept = []
        for line in answer.splitlines():
            found = _CANDIDATE.match(line)
            if found:
                relay = await UdpRelay(self.up, self.down).open(found[2], int(found[3]))
                self._relays.append(relay)
                line = f"{found[1]} {found[2]} {relay.port} {found[4]}"
            if found or not line.startswith("a=candidate:"):
                kept.append(line)
        return "\r\n".join(kept) + "\r\n"

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            to_server, server = await asyncio.open_connection(self._host, self._port)
        except OSError:
            writer.close()
            return
        for way, source, sink in ((self.up, reader, server), (self.down, to_server, writer)):
            task = asyncio.ensure_future(_pump(way, source, sink))
            self._pumps.add(task)
            task.add_done_callback(self._pumps.discard)


async def _pump(way: Way, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    """Pass a TCP stream on until it ends, and then its end."""
    loop, delayed, last = asyncio.get_running_loop(), _Delayed(way, sink.write), 0.0
    with contextlib.suppress(ConnectionError):
        while data := await source.read(PIECE):
            last = delayed.put(data, is_lossless=True) or last
            if last - loop.time() > 1:
                await asyncio.sleep(0.5)  # enough waits already
    await asyncio.sleep(max(0.0, last - loop.time()) + 0.01)
    sink.close()
