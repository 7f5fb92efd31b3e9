"""Pages of the service in a headless Chromium that press keys and note what they see, for benchmarks/latency.py."""

import asyncio
import base64
import contextlib
import json
import math
import random
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
from playwright.async_api import Browser, Page, async_playwright
from playwright.async_api import TimeoutError as TooLate

from benchmarks import live
from benchmarks.latency_parts import Press, Shown, answer, moments
from benchmarks.relay import Relay
from stream import mark
from stream.trace import KEPT_EVERY, ControlTime, FrameTimes

ARGUMENTS = (*live.CHROMIUM, "--disable-backgrounding-occluded-windows", "--disable-renderer-backgrounding")
BAND = {"width": 160, "height": 32, "top": 0.4, "share": 0.35}
"""The part of a picture in which movement is looked for: below any mark, and where something stands in most worlds."""
MARK = {
    "bits": mark.BITS,
    "check": mark.CHECK_BITS,
    "fields": [mark.FRAME_BITS, mark.CHUNK_BITS, mark.SEQUENCE_BITS],
    "polynomial": mark.POLYNOMIAL,
    "first": mark.FIRST,
    "between": mark.BETWEEN,
    "wide": mark.WIDE,
}
SCRIPT = Path(__file__).with_name("latency.js")
LIVE_SECONDS = 30.0
ANSWER_SECONDS = 5.0
SETTLE_SECONDS = 0.35
"""From an answer to the next press, at least: so many frames say which way the picture moves before it."""
PULL_EVERY = 10
OFFSET_TRIES, LAST_OFFSET_TRIES = 6, 15
SAME_CLOCK_MS = 0.2


@contextlib.asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """A headless Chromium."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=live.chromium_path(), args=list(ARGUMENTS))
        try:
            yield browser
        finally:
            await browser.close()


def script(wholes: bool = False) -> str:
    """latency.js with its numbers; with `wholes` it also keeps whole pictures, of the frames that the server keeps."""
    given = json.dumps(MARK), json.dumps({**BAND, "every": KEPT_EVERY if wholes else 0})
    return "(() => {{ const MARK = {}, BAND = {};\n{}\n}})();".format(*given, SCRIPT.read_text())


class Watched:
    """A page of the service and what it noted so far."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.keys: list[list[Any]] = []
        self.sent: list[list[Any]] = []
        self.told: list[dict[str, Any]] = []
        self.shown: list[Shown] = []
        self.bands: list[np.ndarray] = []
        self.wholes: dict[int, np.ndarray] = {}
        self.pressed, self.began, self.ended = 0, 0.0, 0.0
        self.counted: list[dict[str, Any] | None] = []
        self.ahead = (-math.inf, math.inf)
        self.origin: float | None = None

    @classmethod
    async def open(
        cls, browser: Browser, address: str, prompt: str, seed: int = 5, link: Relay | None = None
    ) -> "Watched":
        """A page with a world of this prompt, in a context of its own; its world may not have begun."""
        context = await browser.new_context(viewport={"width": 640, "height": 420})
        await context.add_init_script(script(wholes=link is not None))
        if link:
            await link.guard(context)
        page = await context.new_page()
        await page.goto(f"{address}/?seed={seed}&prompt={urllib.parse.quote(prompt)}", wait_until="commit")
        return cls(page)

    async def is_live(self, seconds: float = LIVE_SECONDS) -> bool:
        """Wait for the first picture; False where none comes."""
        try:
            await self.page.wait_for_selector("html[data-state=live]", state="attached", timeout=1000 * seconds)
        except TooLate:
            return False
        return True

    async def press(self, count: int, seed: int) -> None:
        """From `began` to `ended` turn to the other side `count` times, each at a random moment of a chunk, and wait
        for each answer. What follows one by a fixed time and a chance that is even over a chunk is at an even phase.
        """
        sides = ("l", "j")
        await self.ask_for_origin()
        self.counted.append(await self.page.evaluate("harness.received()"))
        self.began = await self.page.evaluate("performance.now()")
        await self.page.keyboard.down(sides[0])
        await asyncio.sleep(4 * SETTLE_SECONDS)
        await self.pull()
        for number, moment in enumerate(moments(count, random.Random(seed)), 1):
            await asyncio.sleep(SETTLE_SECONDS + moment * self.chunk_seconds)
            await self.page.keyboard.up(sides[(number - 1) % 2])
            await self.page.keyboard.down(sides[number % 2])
            self.pressed += 1
            await self.page.evaluate(f"harness.answered({ANSWER_SECONDS})")
            if number % PULL_EVERY == 0:
                await self.pull()
                await self.compare_clocks()
        await asyncio.sleep(2 * SETTLE_SECONDS)
        self.ended = await self.page.evaluate("performance.now()")
        self.counted.append(await self.page.evaluate("harness.received()"))
        await self.page.keyboard.up(sides[count % 2])
        await self.pull()

    async def ask(self, prompt: str) -> float | None:
        """Ask for another prompt; ms until a frame that obeys it is displayed, None where none came."""
        await self.pull()
        await self.page.fill("#prompt", prompt)
        await self.page.press("#prompt", "Enter")
        answered = await self.page.evaluate(f"harness.answered({ANSWER_SECONDS})")
        await asyncio.sleep(0.1)
        before = len(self.shown)
        await self.pull()
        asked = next(sent for sent in reversed(self.sent) if sent[0] == "prompt")
        found = answer(self.shown[before:], Press("", asked[4], asked[1])) if answered else None
        return None if found is None else self.shown[before + found].displayed - asked[4]

    async def pull(self) -> None:
        """Take over what the page noted."""
        noted = await self.page.evaluate("harness.pull()")
        self.keys += noted["keys"]
        self.sent += noted["sent"]
        self.told += noted["told"]
        self.shown += [Shown(*frame) for frame in noted["frames"]]
        bands = np.frombuffer(base64.b64decode(noted["bands"]), np.uint8)
        self.bands += list(bands.reshape(-1, BAND["height"], BAND["width"]))
        for one in noted["wholes"]:
            grey = np.frombuffer(base64.b64decode(one["grey"]), np.uint8)
            self.wholes[one["frame"]] = grey.reshape(one["height"], one["width"])

    async def compare_clocks(self, tries: int = OFFSET_TRIES) -> None:
        """See how many ms the server's clock is ahead of the page's. Neither drifts: all that was ever seen counts."""
        least, most = await self.page.evaluate(f"harness.ahead({tries})")
        self.ahead = max(self.ahead[0], least), min(self.ahead[1], most)

    async def ask_for_origin(self) -> None:
        """When the page's clock was 0, by the browser's monotonic clock: on one machine that is the server's too."""
        tools = await self.page.context.new_cdp_session(self.page)
        await tools.send("Performance.enable")
        metrics = (await tools.send("Performance.getMetrics"))["metrics"]
        self.origin = next((1000 * one["value"] for one in metrics if one["name"] == "NavigationStart"), None)
        await tools.detach()

    @property
    def clock(self) -> tuple[float, float]:
        """How many ms the server's clock is ahead of the page's, and how exact that is: the origin where what was seen
        allows it, that is, where both run on one machine."""
        least, most = self.ahead
        if self.origin is not None and least - SAME_CLOCK_MS <= self.origin <= most + SAME_CLOCK_MS:
            return self.origin, 0.1  # pages see time in steps of 0.1 ms
        return (least + most) / 2, (most - least) / 2

    @property
    def offset(self) -> float:
        """How many ms the server's clock is ahead of the page's."""
        return self.clock[0]

    @property
    def _welcome(self) -> dict[str, Any]:
        return next(told for told in reversed(self.told) if told["type"] == "welcome")

    @property
    def session(self) -> str:
        """The session's name, as the server welcomed it."""
        return self._welcome["session"]

    @property
    def fps(self) -> int:
        """The world's frames a second."""
        return self._welcome["fps"]

    @property
    def chunk_seconds(self) -> float:
        """How long a chunk plays."""
        return self._welcome["chunk_frames"] / self.fps

    async def close(self) -> None:
        """Leave; the slot is free."""
        await self.page.context.close()


class Record:
    """What the server tells at /mark, fetched while it is remembered."""

    def __init__(self, address: str, with_pictures: bool = False) -> None:
        self._address, self._count, self._with_pictures = address, 0, with_pictures
        self.pictures: dict[tuple[str, int], bytes] = {}
        self.frames: list[FrameTimes] = []
        self.controls: list[ControlTime] = []

    async def fetch(self) -> None:
        """Take over what is new."""
        told = await asyncio.to_thread(self._get)
        self._count = told["count"]
        new = [FrameTimes(*row) for row in told["frames"]]
        self.frames += new
        if self._with_pictures:
            for way in new:
                if way.frame % KEPT_EVERY == 0:
                    await asyncio.to_thread(self._get_picture, way)
        self.controls += [ControlTime(*row) for row in told["controls"]]

    def _get(self) -> dict[str, Any]:
        try:
            with urllib.request.urlopen(f"{self._address}/mark?since={self._count}", timeout=10) as response:
                return json.load(response)
        except urllib.error.HTTPError:
            raise SystemExit(f"{self._address} has no /mark: start it with `chunkcast serve --mark`") from None

    def _get_picture(self, way: FrameTimes) -> None:
        try:
            with urllib.request.urlopen(f"{self._address}/mark/{way.run}/{way.frame}", timeout=10) as response:
                self.pictures[way.run.partition(".")[0], way.frame] = response.read()
        except urllib.error.HTTPError:
            return  # not kept any more

    async def keep(self, seconds: float = 30.0) -> None:
        """Fetch now and then, until cancelled."""
        while True:
            await asyncio.sleep(seconds)
            await self.fetch()


async def first_picture(browser: Browser, address: str, prompt: str) -> dict[str, float] | None:
    """ms from opening a page to its welcome, to its slot and to its first picture; None where none came."""
    watched = await Watched.open(browser, address, prompt)
    try:
        if not await watched.is_live():
            return None
        await watched.pull()
        told = {message["type"]: message["at"] for message in watched.told}
        times = {"welcome": told["welcome"], "live": told["live"], "picture": watched.shown[0].displayed}
        return {name: round(at, 1) for name, at in times.items()}
    finally:
        await watched.close()
        await asyncio.sleep(0.5)
