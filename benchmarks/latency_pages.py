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
from benchmarks.latency_parts import Press, Shown, answer
from benchmarks.relay import Relay
from stream import mark
from stream.trace import ControlTime, FrameTimes

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
SCRIPT = "(() => {{ const MARK = {}, BAND = {};\n{}\n}})();".format(
    json.dumps(MARK), json.dumps(BAND), Path(__file__).with_name("latency.js").read_text()
)
LIVE_SECONDS = 30.0
ANSWER_SECONDS = 5.0
SETTLE_SECONDS = 0.35
"""From an answer to the next press, at least: so many frames say which way the picture moves before it."""
PULL_EVERY = 20
OFFSET_TRIES, LAST_OFFSET_TRIES = 6, 40


@contextlib.asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """A headless Chromium."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=live.chromium_path(), args=list(ARGUMENTS))
        try:
            yield browser
        finally:
            await browser.close()


class Watched:
    """A page of the service and what it noted so far."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.keys: list[list[Any]] = []
        self.sent: list[list[Any]] = []
        self.told: list[dict[str, Any]] = []
        self.shown: list[Shown] = []
        self.bands: list[np.ndarray] = []
        self.pressed, self.began, self.ended = 0, 0.0, 0.0
        self.counted: list[dict[str, Any] | None] = []
        self.offset, self.exact = 0.0, math.inf

    @classmethod
    async def open(
        cls, browser: Browser, address: str, prompt: str, seed: int = 5, link: Relay | None = None
    ) -> "Watched":
        """A page with a world of this prompt, in a context of its own; its world may not have begun."""
        context = await browser.new_context(viewport={"width": 640, "height": 420})
        await context.add_init_script(SCRIPT)
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
        """From `began` to `ended` turn to the other side `count` times, each at a random moment of a chunk, and wait for
        each answer. What follows one by a fixed time and a chance that is even over one chunk is at an even phase.
        """
        chance, sides = random.Random(seed), ("l", "j")
        self.counted.append(await self.page.evaluate("harness.received()"))
        self.began = await self.page.evaluate("performance.now()")
        await self.page.keyboard.down(sides[0])
        await asyncio.sleep(4 * SETTLE_SECONDS)
        await self.pull()
        for number in range(1, count + 1):
            await asyncio.sleep(SETTLE_SECONDS + chance.uniform(0, self.chunk_seconds))
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

    async def compare_clocks(self, tries: int = OFFSET_TRIES) -> None:
        """See how many ms the server's clock is ahead of the page's: `offset`, exact to `exact` at most. The clocks do
        not drift, so the quickest answer of all times counts."""
        ahead, trip = await self.page.evaluate(f"harness.offset({tries})")
        if trip < self.exact:
            self.offset, self.exact = ahead, trip

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

    def __init__(self, address: str) -> None:
        self._address, self._count = address, 0
        self.frames: list[FrameTimes] = []
        self.controls: list[ControlTime] = []

    async def fetch(self) -> None:
        """Take over what is new."""
        told = await asyncio.to_thread(self._get)
        self._count = told["count"]
        self.frames += [FrameTimes(*row) for row in told["frames"]]
        self.controls += [ControlTime(*row) for row in told["controls"]]

    def _get(self) -> dict[str, Any]:
        try:
            with urllib.request.urlopen(f"{self._address}/mark?since={self._count}", timeout=10) as response:
                return json.load(response)
        except urllib.error.HTTPError:
            raise SystemExit(f"{self._address} has no /mark: start it with `chunkcast serve --mark`") from None

    async def keep(self, seconds: float = 60.0) -> None:
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
