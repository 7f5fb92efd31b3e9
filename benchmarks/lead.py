"""How soon a key is answered and how often the picture stands, by the lead: python -m benchmarks.lead

Starts `chunkcast serve --lead MS` with the tiny world for each of --leads and each of --viewers. Viewers by /ws and
WebRTC do not decode, so that their cost is small; each presses another key at a random moment, over and over. Counted
is the time from the key's message until the first frame that obeys it has come as packets: all but the page's own
display. Beside it chunks that came late (from /metrics), the gaps between frames, and the seconds for which the picture
stood longer than two frames. A lead of a whole chunk or more is what the service did before it had one: a chunk begins
as soon as it may. The limit, printed first, is the answer of an engine that begins each chunk at the last moment: half
a chunk's playing time on average and one chunk's making. Ends with one JSON line.

python -m benchmarks.plot_lead benchmarks/results/NAME.json -o PNG draws it.
"""

import argparse
import asyncio
import contextlib
import itertools
import random
import re
import sys
import time
from typing import Any

import httpx
import numpy as np

from benchmarks import machine
from benchmarks.visitors import Page, Receiver, page_of, served

LEADS = (0, 10, 20, 40, 80, 250)
SETTLE_SECONDS = 6.0
"""In so long two viewers' clocks have come together, and the first chunks' times are known."""
PRESS_SECONDS = (0.4, 0.9)
"""Between two presses: longer than an answer takes, shorter than a key is held without being sent again."""
STANDS_FRAMES = 2.5


class Walker:
    """A viewer who turns this way and that; `answers` has the seconds from each key to its first frame."""

    def __init__(self, page: Page, receiver: Receiver) -> None:
        self._page, self.receiver = page, receiver
        self._pressed: dict[int, float] = {}
        self.answers: list[tuple[float, float]] = []

    async def walk(self, seed: int) -> None:
        """Press keys and hear the answers until it is cancelled."""
        await asyncio.gather(self._press(random.Random(seed)), self._listen())

    async def _press(self, dice: random.Random) -> None:
        for seq in itertools.count(1):
            await asyncio.sleep(dice.uniform(*PRESS_SECONDS))
            self._pressed[seq] = time.monotonic()
            await self._page.say(type="keys", seq=seq, held=["j" if seq % 2 else "l"])

    async def _listen(self) -> None:
        while True:
            applied = await self._page.hear("applied", seconds=60)
            at = await self.receiver.when(applied["rtp"])
            for seq in [seq for seq in self._pressed if seq <= applied["seq"]]:
                pressed = self._pressed.pop(seq)
                if at is not None:
                    self.answers.append((at, at - pressed))


@contextlib.asynccontextmanager
async def walking(address: str, http: httpx.AsyncClient, seed: int):
    """A live viewer who walks until the end."""
    async with page_of(address) as page:
        receiver = Receiver()
        await page.hear("live")
        if not await receiver.fetch(http, "session=", page.token):
            raise SystemExit("the server refused a picture to a live session")
        await receiver.frames_there(1)
        walker = Walker(page, receiver)
        task = asyncio.ensure_future(walker.walk(seed))
        try:
            yield walker
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await receiver.close(http)


async def measure(address: str, viewers: int, seconds: float) -> dict[str, Any]:
    """So many viewers of one service for some seconds."""
    async with httpx.AsyncClient(base_url=address, timeout=30) as http, contextlib.AsyncExitStack() as stack:
        walkers = [await stack.enter_async_context(walking(address, http, seed)) for seed in range(viewers)]
        await asyncio.sleep(SETTLE_SECONDS)
        since, late = time.monotonic(), await _late(http)
        await asyncio.sleep(seconds)
        late = await _late(http) - late
        answers = [answer for walker in walkers for at, answer in walker.answers if at >= since]
        times = [[at for at in walker.receiver.at if at >= since] for walker in walkers]
    return {"presses": len(answers), **quantiles(answers), "chunks_late": late, **evenness(times, seconds)}


async def _late(http: httpx.AsyncClient) -> int:
    text = (await http.get("/metrics")).text
    return int(float(re.search(r"^chunkcast_chunks_late_total (\S+)$", text, re.M)[1]))


def quantiles(seconds: list[float]) -> dict[str, float | None]:
    """Milliseconds that 50, 90 and 99% of the answers took at most; None of no answers."""
    if not seconds:
        return dict.fromkeys(("p50_ms", "p90_ms", "p99_ms"))
    return {f"p{share}_ms": round(1000 * float(np.percentile(seconds, share)), 1) for share in (50, 90, 99)}


def evenness(times: list[list[float]], seconds: float, fps: int = 16) -> dict[str, Any]:
    """Frames a second of the viewer who got least, the gaps of all, and how long pictures stood, a viewer and minute.

    `times` are those of each viewer's frames. A picture stands from two and a half frames on.
    """
    gaps = [later - at for each in times for at, later in itertools.pairwise(each)]
    stood = [gap - 1 / fps for gap in gaps if gap > STANDS_FRAMES / fps]
    minutes = len(times) * seconds / 60
    return {
        "least_fps": round(min(map(len, times)) / seconds, 2),
        "p99_gap_ms": round(1000 * float(np.percentile(gaps, 99)), 1) if gaps else None,
        "longest_gap_ms": round(1000 * max(gaps), 1) if gaps else None,
        "stood_a_minute": round(len(stood) / minutes, 2),
        "stood_seconds_a_minute": round(sum(stood) / minutes, 3),
    }


def main(argv: list[str] | None = None) -> int:
    """Print the limit, then each lead's figures."""
    options = _parser().parse_args(argv)
    print("limit: p50 of half a chunk's playing time, 125 ms, and the time of a chunk (benchmarks.live)", flush=True)
    runs = []
    for lead, viewers in itertools.product(_numbers(options.leads), map(int, _numbers(options.viewers))):
        server = ["benchmarks.synthetic"] if options.synthetic else ["stream", "serve", "--port", "0", *options.serve]
        with served([*server, "--lead", str(lead)]) as (address, _):
            found = asyncio.run(measure(address, viewers, options.seconds))
        runs.append({"lead_ms": lead, "viewers": viewers, **found})
        print(runs[-1], flush=True)
    world = "synthetic" if options.synthetic else "tiny"
    result = {"benchmark": "lead", "world": world, "seconds": options.seconds, "runs": runs}
    machine.finish({**result, **machine.facts()}, options.save)
    return 0


def _numbers(text: str) -> list[float]:
    return [float(number) for number in text.split(",")]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lead", description=__doc__.splitlines()[0])
    leads = ",".join(map(str, LEADS))
    parser.add_argument("--leads", default=leads, metavar="MS,...", help="milliseconds (default: %(default)s)")
    parser.add_argument("--viewers", default="1,2", metavar="N,...", help="at once (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=40.0, help="of each (default: %(default)g)")
    parser.add_argument("--synthetic", action="store_true", help="frames that cost nothing in place of the tiny world")
    parser.add_argument("serve", nargs="*", help="more options of chunkcast serve, after --")
    machine.add_output(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
