"""How much a server holds with an even pace: python -m benchmarks.load

A server with synthetic frames of 256x256 at 16 frames/s (benchmarks/synthetic.py), and visitors on the same machine
that do not decode: what they cost counts against the server. Pace is the 99th percentile of the time from one frame's
last packet to the next one's; it is even while that is at most two frames, and no viewer gets less than 97% of them.

- viewers: more and more live ones, each with a WebSocket and a WebRTC connection, until the pace is uneven
- spectators: more and more who watch the walk of one viewer, each with a WebRTC connection and an encoder of its own
- line: more and more pages in line behind two viewers, who are looked at
- visits: joins and leaves beside two viewers, 500 a minute and then as fast as they come, and what they leave behind in
  the server's process

Ends with one JSON line.
"""

import argparse
import asyncio
import contextlib
import itertools
import sys
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import httpx
import numpy as np

from benchmarks import machine
from benchmarks.synthetic import FPS, Engine
from benchmarks.visitors import Page, Receiver, page_of, served, usage
from stream.codec import LiveEncoder

VIEWERS = (1, 2, 4, 8, 12, 16, 20, 24, 28, 32, 40, 48)
SPECTATORS = (1, 4, 8, 16, 24, 32, 40, 48)
LINE = (100, 250, 500, 1000)
EVEN_FRAMES, FULL_SHARE = 2, 0.97
AT_ONCE = 10
"""Pages that come to the line at the same moment, and visits under way."""
VISITS_A_MINUTE, KEPT_SECONDS = 500, 11
"""After visits the connections that HTTP keeps have ended, and the memory has been given back: both take 5 s."""
SETTLE_SECONDS = 1.0
"""After the last one has come."""


def limits() -> dict[str, Any]:
    """What bounds the server: cores, what a frame costs to encode, and memory."""
    engine, encoder, times = Engine(1), LiveEncoder("VP8", FPS), []
    for number in range(64):
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(engine.draw(number)), "rgb24")
        frame.pts, frame.time_base = number, Fraction(1, FPS)
        began = time.thread_time()
        encoder.encode(frame)
        times.append(1000 * (time.thread_time() - began))
    memory = Path("/proc/meminfo").read_text().split()
    facts = machine.facts()
    encode = round(float(np.median(times)), 2)
    most = int(facts["cores"] * 1000 / (FPS * encode))
    return {"encode_ms": encode, "free_mb": int(memory[memory.index("MemAvailable:") + 1]) // 1024, "viewers": most}


def pace(receivers: list[Receiver], since: float, seconds: float) -> dict[str, Any]:
    """How even the frames came to all receivers in that time, in milliseconds, and the least rate of one of them."""
    times = [[at for at in receiver.at if since <= at < since + seconds] for receiver in receivers]
    gaps = [1000 * (later - at) for each in times for at, later in itertools.pairwise(each)]
    if not gaps:
        return {"p99_gap_ms": None, "longest_gap_ms": None, "least_fps": 0.0}
    return {
        "p99_gap_ms": round(float(np.percentile(gaps, 99)), 1),
        "longest_gap_ms": round(max(gaps), 1),
        "least_fps": round(min(map(len, times)) / seconds, 2),
    }


def is_even(found: dict[str, Any]) -> bool:
    """Whether this pace is what a viewer should have."""
    return found["least_fps"] >= FULL_SHARE * FPS and found["p99_gap_ms"] <= EVEN_FRAMES * 1000 / FPS


class Crowd:
    """Viewers and waiting pages of one server, who all leave at the end."""

    def __init__(self, address: str, pid: int) -> None:
        self._address, self._pid, self._stack = address, pid, contextlib.AsyncExitStack()
        self.receivers: list[Receiver] = []
        self.waiting, self._watch_token = 0, ""

    async def __aenter__(self) -> "Crowd":
        self.http = await self._stack.enter_async_context(httpx.AsyncClient(base_url=self._address, timeout=30))
        return self

    async def __aexit__(self, *error: object) -> None:
        await asyncio.gather(*(receiver.close(self.http) for receiver in self.receivers))
        await self._stack.aclose()

    async def _page(self) -> Page:
        return await self._stack.enter_async_context(page_of(self._address))

    def _keep(self, page: Page) -> None:
        listening = asyncio.ensure_future(page.listen())
        self._stack.callback(listening.cancel)

    async def watch(self) -> None:
        """One more live viewer."""
        page, receiver = await self._page(), Receiver()
        await page.hear("live")
        self._keep(page)
        if not await receiver.fetch(self.http, "session=", page.token):
            raise SystemExit("the server refused a picture to a live session")
        await receiver.frames_there(1)
        self.receivers.append(receiver)
        self._watch_token = page.watch_token

    async def spectate(self) -> None:
        """One more who watches the walk of the viewer who came last."""
        receiver = Receiver()
        if not await receiver.fetch(self.http, f"watch={self._watch_token}"):
            raise SystemExit("the server let no one more watch")
        await receiver.frames_there(1)
        self.receivers.append(receiver)

    async def wait_in_line(self, count: int) -> None:
        """So many pages in all wait in line."""
        while self.waiting < count:
            pages = await asyncio.gather(*(self._page() for _ in range(min(AT_ONCE, count - self.waiting))))
            for page in pages:
                self._keep(page)
            self.waiting += len(pages)

    async def look(self, seconds: float) -> dict[str, Any]:
        """The pace over some seconds, and what the server's process used for it."""
        before, since = usage(self._pid), time.monotonic()
        await asyncio.sleep(seconds)
        after = usage(self._pid)
        share = (after["processor_seconds"] - before["processor_seconds"]) / seconds
        return {**pace(self.receivers, since, seconds), "server_cores": round(share, 2), "server_mb": after["mb"]}


async def hold_viewers(address: str, pid: int, steps: tuple[int, ...], seconds: float) -> list[dict[str, Any]]:
    """The pace for more and more live viewers, until it is uneven."""
    found: list[dict[str, Any]] = []
    async with Crowd(address, pid) as crowd:
        for count in steps:
            while len(crowd.receivers) < count:
                await crowd.watch()
            await asyncio.sleep(SETTLE_SECONDS)
            found.append({"viewers": count, **await crowd.look(seconds)})
            print(f"viewers {found[-1]}", flush=True)
            if not is_even(found[-1]):
                break
    return found


async def hold_spectators(address: str, pid: int, steps: tuple[int, ...], seconds: float) -> list[dict[str, Any]]:
    """The pace of one viewer and of more and more who watch, until it is uneven."""
    found: list[dict[str, Any]] = []
    async with Crowd(address, pid) as crowd:
        await crowd.watch()
        for count in steps:
            while len(crowd.receivers) < 1 + count:
                await crowd.spectate()
            await asyncio.sleep(SETTLE_SECONDS)
            found.append({"spectators": count, **await crowd.look(seconds)})
            print(f"spectators {found[-1]}", flush=True)
            if not is_even(found[-1]):
                break
    return found


async def hold_line(address: str, pid: int, steps: tuple[int, ...], seconds: float) -> list[dict[str, Any]]:
    """The pace of two viewers with more and more pages in line behind them."""
    found: list[dict[str, Any]] = []
    async with Crowd(address, pid) as crowd:
        for _ in range(2):
            await crowd.watch()
        for count in steps:
            began = time.monotonic()
            more = count - crowd.waiting
            await crowd.wait_in_line(count)
            a_minute = round(60 * more / (time.monotonic() - began))
            await asyncio.sleep(SETTLE_SECONDS)
            found.append({"line": count, "came_a_minute": a_minute, **await crowd.look(seconds)})
            print(f"line {found[-1]}", flush=True)
            if not is_even(found[-1]):
                break
    return found


async def visit(address: str, http: httpx.AsyncClient, number: int) -> None:
    """Come and leave again: three of four by /ws alone, one with a picture."""
    if number % 4:
        async with page_of(address) as page:
            await page.say(type="keys", seq=1, held=["w"])
            await page.hear("received")
        return
    receiver = Receiver()
    if await receiver.fetch(http, "prompt=a+visit"):
        await receiver.frames_there(1)
    await receiver.close(http)


async def visits(address: str, pid: int, count: int) -> dict[str, Any]:
    """So many joins and leaves beside two viewers, first evenly and then as fast as they come: the pace meanwhile, and
    what the server's process holds before and after each."""
    found: dict[str, Any] = {"visits": count}
    async with Crowd(address, pid) as crowd:
        for _ in range(2):
            await crowd.watch()
        await _come_and_go(address, crowd.http, iter(range(count // 4)), 0)  # to warm up
        held = [await _usage_at_rest(pid)]
        for name, rest in (("paced", 60 * AT_ONCE / VISITS_A_MINUTE), ("at_once", 0)):
            began, numbers = time.monotonic(), iter(range(count))
            await asyncio.gather(*(_come_and_go(address, crowd.http, numbers, rest) for _ in range(AT_ONCE)))
            seconds = time.monotonic() - began
            found[name] = {"a_minute": round(60 * count / seconds), **pace(crowd.receivers, began, seconds)}
            held.append(await _usage_at_rest(pid))
    found["server_held"] = {name: [one[name] for one in held] for name in ("mb", "files", "threads")}
    print(f"visits {found}", flush=True)
    return found


async def _come_and_go(address: str, http: httpx.AsyncClient, numbers: Iterator[int], rest: float) -> None:
    """Visits, each begun `rest` seconds after the one before."""
    for number in numbers:
        began = time.monotonic()
        await visit(address, http, number)
        await asyncio.sleep(max(0.0, rest - (time.monotonic() - began)))


async def _usage_at_rest(pid: int) -> dict[str, float]:
    await asyncio.sleep(KEPT_SECONDS)
    return usage(pid)


def main(argv: list[str] | None = None) -> int:
    """Print the limits, then what holds."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10.0, help="of each step (default: 10)")
    parser.add_argument("--viewers", type=int, default=max(VIEWERS), help="at most (default: %(default)s)")
    parser.add_argument("--spectators", type=int, default=max(SPECTATORS), help="at most (default: %(default)s)")
    parser.add_argument("--line", type=int, default=max(LINE), help="at most (default: %(default)s)")
    parser.add_argument("--visits", type=int, default=500, help="joins and leaves (default: %(default)s)")
    machine.add_output(parser)
    options = parser.parse_args(argv)
    bounds, facts = limits(), machine.facts()
    print(
        f"limit: {facts['cores']} cores, {bounds['encode_ms']} ms to encode a frame: {bounds['viewers']} viewers if "
        f"nothing else cost anything; {bounds['free_mb']} MB of memory",
        flush=True,
    )
    steps = [
        tuple(step for step in all_ if step <= most)
        for all_, most in ((VIEWERS, options.viewers), (SPECTATORS, options.spectators), (LINE, options.line))
    ]
    with served(["benchmarks.synthetic", "--slots", str(max(VIEWERS))]) as (address, process):
        viewers = asyncio.run(hold_viewers(address, process.pid, steps[0], options.seconds))
    with served(["benchmarks.synthetic", "--slots", "1", "--spectators", str(max(SPECTATORS))]) as (address, process):
        spectators = asyncio.run(hold_spectators(address, process.pid, steps[1], options.seconds))
    with served(["benchmarks.synthetic", "--slots", "2", "--line", str(max(LINE))]) as (address, process):
        line = asyncio.run(hold_line(address, process.pid, steps[2], options.seconds))
    with served(["benchmarks.synthetic", "--slots", "4"]) as (address, process):
        came = asyncio.run(visits(address, process.pid, options.visits))
    held = {
        "viewers": max((one["viewers"] for one in viewers if is_even(one)), default=0),
        "spectators": max((one["spectators"] for one in spectators if is_even(one)), default=0),
        "line": max((one["line"] for one in line if is_even(one)), default=0),
        "visits_a_minute": came["at_once"]["a_minute"],
    }
    steps_of = {"viewers": viewers, "spectators": spectators, "line": line, "visits": came}
    machine.finish({"benchmark": "load", "held": held, "limits": bounds, **steps_of, **facts}, options.save)
    return 0


if __name__ == "__main__":
    sys.exit(main())
