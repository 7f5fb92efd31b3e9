"""From the key to the pixel, as a person feels it: python -m benchmarks.latency

Starts `chunkcast serve --mark` (or takes --url) and opens one and then two pages in a headless Chromium, which turn
left and right at random moments of a chunk, --presses times each. A press is answered by the first displayed frame
whose mark obeys it; whether the picture itself turns with that frame is checked beside it. The number is ms from the
key's event to the time at which that frame is displayed: p50, p90 and p99, with every press split into parts that add
up. Also: frames/s over all pages that asked (one in line counts as zero), gaps and freezes, opened page to first
picture, prompt to picture, and seconds until an engine that was killed shows the world again.

`--netem delay=40,jitter=10,loss=3,rate=1500` measures through such a link (ms, percent, kbit/s; each way), which is a
relay in this process; may be given several times. More options of `chunkcast serve` follow after `--`.

The limit is half a chunk of waiting, the chunk's own time and the display's: it is printed first.
"""

import argparse
import asyncio
import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from playwright.async_api import Browser

from benchmarks import machine, recovery
from benchmarks.latency_pages import LAST_OFFSET_TRIES, Record, Watched, chromium, first_picture
from benchmarks.latency_parts import (
    GENERATOR,
    PARTS,
    TURNS,
    Press,
    add_up,
    agreement,
    answer,
    by_frame,
    evenness,
    likeness,
    phases,
    presses,
    split,
    spread,
    turn,
)
from benchmarks.relay import Relay, Shape
from benchmarks.visitors import served
from stream.mark import FRAME_BITS

PROMPTS = ("a desert with columns at noon", "a forest at night", "a meadow with houses at noon", "a village at dusk")
OTHERS = ("a forest in the morning", "a desert with columns at night")
COUNTERS = ("bytesReceived", "qpSum", "framesDecoded", "packetsLost", "framesDropped", "keyFramesDecoded",
            "jitterBufferDelay", "jitterBufferEmittedCount")  # fmt: skip
LINE_SECONDS = 5.0
"""A page that is not live so long after the first ones stands in line."""
BEFORE_FRAMES = 1


class Seen:
    """What one page's presses came to: `whole` ms each, their `parts`, and by how many frames the picture's own answer
    is later than the mark's (None where the picture does not tell). `quarters` are of a chunk, and how many presses
    came in each. `page_says` is how far the page's own figure is off, in ms."""

    def __init__(self) -> None:
        self.whole: list[float] = []
        self.parts: list[dict[str, float]] = []
        self.distances: list[int | None] = []
        self.page_says: list[float] = []
        self.quarters: list[int] = [0, 0, 0, 0]
        self.unanswered = 0

    def take(self, page: Watched, record: Record) -> None:
        """Find the answers to all presses but the first, before which nothing turned."""
        came = {(one.session, one.sequence): one.came for one in record.controls}
        ways, says = by_frame(record.frames), {sent[1]: sent[3] for sent in page.sent if sent[0] == "shown"}
        pressed = presses(page.keys, page.sent)[1:]
        when = [(one.at + page.offset) / 1000 for one in pressed]
        self.quarters = phases(when, _starts(record, page.session), page.chunk_seconds)
        for press in pressed:
            index = answer(page.shown, press)
            way = None if index is None else ways.get((page.session, page.shown[index].frame))
            if way is None or (page.session, press.sequence) not in came:
                self.unanswered += 1
                continue
            shown = page.shown[index]
            self.whole.append(shown.displayed - press.at)
            self.parts.append(split(press, came[page.session, press.sequence], way, shown, page.offset))
            self.distances.append(_distance(page, press, index))
            if press.sequence in says:
                self.page_says.append(abs(says[press.sequence] - self.whole[-1]))

    def add(self, other: "Seen") -> None:
        """Count another page's along."""
        for name in ("whole", "parts", "distances", "page_says"):
            getattr(self, name).extend(getattr(other, name))
        self.quarters = [mine + theirs for mine, theirs in zip(self.quarters, other.quarters, strict=True)]
        self.unanswered += other.unanswered


def _starts(record: Record, session: str) -> list[float]:
    """When each chunk's first frame left the server, in its seconds."""
    starts: dict[int, float] = {}
    for way in record.frames:
        if way.run.startswith(f"{session}."):
            starts[way.chunk] = min(way.took, starts.get(way.chunk, way.took))
    return list(starts.values())


def _distance(page: Watched, press: Press, index: int) -> int | None:
    """By how many frames the picture's answer to a press is later than the mark's."""
    first = next(at for at, frame in enumerate(page.shown) if frame.displayed > press.at)
    found = turn(page.bands, first, index + 3, TURNS[press.key])
    return None if found is None else found - index


async def measure(
    browser: Browser, address: str, viewers: int, count: int, link: Relay | None = None
) -> dict[str, Any]:
    """Pages that press keys side by side, and what came of it."""
    at = link.address if link else address
    pages = [await Watched.open(browser, at, PROMPTS[n % len(PROMPTS)], link=link) for n in range(viewers)]
    try:
        first = await pages[0].is_live()
        live = [first, *await asyncio.gather(*(page.is_live(LINE_SECONDS) for page in pages[1:]))]
        if not any(live):
            raise SystemExit("no page came to live; open one by hand to see why")
        record = Record(address, with_pictures=link is not None)
        await record.fetch()
        keeping = asyncio.ensure_future(record.keep())
        playing = [page for page, is_live in zip(pages, live, strict=True) if is_live]
        await asyncio.gather(*(page.press(count, seed) for seed, page in enumerate(playing)))
        keeping.cancel()
        await record.fetch()
        with link.rests() if link else contextlib.nullcontext():
            for page in playing:
                await page.compare_clocks(LAST_OFFSET_TRIES)
    finally:
        for page in pages:
            await page.close()
    return summary(playing, record, viewers)


def summary(pages: Sequence[Watched], record: Record, viewers: int) -> dict[str, Any]:
    """The figures of pages that played, of `viewers` that asked."""
    both, even = Seen(), []
    for page in pages:
        one = Seen()
        one.take(page, record)
        both.add(one)
        seconds = (page.ended - page.began) / 1000
        during = [frame for frame in page.shown if page.began <= frame.displayed <= page.ended]
        quality = _quality(*page.counted, seconds) | _likeness(page, record)
        even.append(evenness(during, page.fps, seconds) | {"key_ms": spread(one.whole)} | quality)
    rates = [each["frames_a_second"] for each in even] + [0.0] * (viewers - len(pages))
    outside = [sum(each[name] for name in PARTS if name not in GENERATOR) for each in both.parts]
    return {
        "not_live": viewers - len(pages),
        "presses": sum(page.pressed for page in pages),
        "unanswered": both.unanswered,
        "key_to_pixel_ms": spread(both.whole),
        "parts_ms": {name: spread([each[name] for each in both.parts]) for name in PARTS},
        "outside_generator_ms": spread(outside),
        "frames_a_second_of_all": round(sum(rates) / viewers, 2),
        "pages": even,
        "checks": {
            **add_up(both.parts, both.whole),
            "clock_exact_to_ms": round(max(page.clock[1] for page in pages), 2),
            "page_itself_off_ms": spread(both.page_says),
            "picture_agrees": agreement(both.distances),
            "marks_unread": sum(frame.frame is None for page in pages for frame in page.shown),
            "presses_by_quarter_of_a_chunk": both.quarters,
        },
        "ms": [round(whole, 1) for whole in both.whole],
    }


def _quality(before: dict[str, Any] | None, after: dict[str, Any] | None, seconds: float) -> dict[str, Any]:
    """What the receiver says of the link and the picture in these seconds; "way" is how it came."""
    if after is None or not after.get("framesDecoded"):
        return {"way": "websocket"}
    if before is None or before["ssrc"] != after["ssrc"]:  # another connection meanwhile
        before = {}
    since = {name: value - before.get(name, 0) for name, value in after.items() if name in COUNTERS}
    return {
        "way": "webrtc",
        "kbit_a_second": round(8 * since["bytesReceived"] / seconds / 1000),
        "mean_quantizer": round(since.get("qpSum", 0) / max(1, since["framesDecoded"]), 1),
        "packets_lost": since["packetsLost"],
        "frames_dropped": since["framesDropped"],
        "key_frames": since["keyFramesDecoded"],
        "jitter_buffer_ms": round(1000 * since["jitterBufferDelay"] / max(1, since["jitterBufferEmittedCount"]), 1),
    }


def _likeness(page: Watched, record: Record) -> dict[str, Any]:
    """How much like what was sent the page's pictures were, where they were kept."""
    sent = {
        frame % 2**FRAME_BITS: data for (session, frame), data in record.pictures.items() if session == page.session
    }
    found = [likeness(seen, sent[frame]) for frame, seen in page.wholes.items() if frame in sent]
    if not found:
        return {}
    p50, p10 = np.percentile(found, (50, 10))
    return {"psnr_db": {"p50": round(float(p50), 1), "p10": round(float(p10), 1), "pictures": len(found)}}


async def opening(browser: Browser, address: str, times: int) -> dict[str, Any]:
    """Opened page to first picture: of the first session after the start, and of later ones; the browser has been in
    use before."""
    context = await browser.new_context()
    await (await context.new_page()).goto(f"{address}/healthz")
    await context.close()
    found = [await first_picture(browser, address, PROMPTS[0]) for _ in range(times + 1)]
    warm = [each["picture"] for each in found[1:] if each]
    return {"first": found[0], "warm_ms": spread(warm), "warm_without_picture": found[1:].count(None)}


async def prompting(browser: Browser, address: str, times: int) -> dict[str, Any]:
    """Prompt to picture: ms until the first frame is displayed that obeys it."""
    page = await Watched.open(browser, address, PROMPTS[0])
    try:
        if not await page.is_live():
            raise SystemExit("no page came to live; open one by hand to see why")
        found = []
        for number in range(times):
            await asyncio.sleep(1.0 + 0.25 * (number * 0.618 % 1))
            found.append(await page.ask(OTHERS[number % 2]))
        return {"ms": spread([each for each in found if each is not None]), "unanswered": found.count(None)}
    finally:
        await page.close()


async def run(options: argparse.Namespace, address: str, process: subprocess.Popen | None) -> dict[str, Any]:
    """Every number that was asked for."""
    found: dict[str, Any] = {}
    async with chromium() as browser:
        if options.netem:
            found["links"] = [await through(browser, address, shape, options) for shape in options.netem]
            return found
        if options.opens:
            found["opening"] = await opening(browser, address, options.opens)
            print(f"opened to first picture: {found['opening']}", flush=True)
        found["viewers"] = {}
        for viewers in options.viewers:
            found["viewers"][viewers] = seen = await measure(browser, address, viewers, options.presses)
            say(f"{viewers} viewer(s)", seen)
        if options.prompts:
            found["prompt"] = await prompting(browser, address, options.prompts)
            print(f"prompt to picture: {found['prompt']}", flush=True)
    if process and options.recoveries:
        times = [await recovery.recover(address, process.pid, signal.SIGKILL) for _ in range(options.recoveries)]
        found["recovery_seconds"] = times
        print(f"engine killed, seconds: {times}", flush=True)
    return found


async def through(browser: Browser, address: str, shape: Shape, options: argparse.Namespace) -> dict[str, Any]:
    """The same through a link."""
    found: dict[str, Any] = {"link": vars(shape), "viewers": {}}
    for viewers in options.viewers:
        async with Relay(address, shape).running() as link:
            seen = await measure(browser, address, viewers, options.presses, link)
        found["viewers"][viewers] = seen | {"packets": {"passed": link.down.passed, "dropped": link.down.dropped}}
        say(f"{shape}, {viewers} viewer(s)", found["viewers"][viewers])
    return found


def say(what: str, seen: dict[str, Any]) -> None:
    """A run in a few lines."""
    print(f"{what}: key to pixel {seen['key_to_pixel_ms']} ms, {seen['unanswered']} unanswered", flush=True)
    if seen["not_live"]:
        print(f"  {seen['not_live']} of the pages stood in line; the server's own words say why", flush=True)
    means = {name: part and part["mean"] for name, part in seen["parts_ms"].items()}
    print(f"  means of the parts: {means}; outside the generator {seen['outside_generator_ms']}", flush=True)
    print(f"  frames/s of all who asked: {seen['frames_a_second_of_all']}; pages: {seen['pages']}", flush=True)
    print(f"  checks: {seen['checks']}", flush=True)


@contextlib.contextmanager
def server(options: argparse.Namespace) -> Iterator[tuple[str, subprocess.Popen | None]]:
    """The service to measure: --url, or one of our own with its process."""
    if options.url:
        yield options.url.rstrip("/"), None
        return
    ours = ["benchmarks.synthetic"] if options.synthetic else ["stream", "serve", "--port", "0"]
    with served([*ours, "--mark", *options.serve]) as (address, process):
        yield address, process


def main(argv: list[str] | None = None) -> int:
    """Print the limit, then the numbers."""
    options = _parser().parse_args(argv)
    print("limit: half a chunk, a chunk's denoising and decoding, and half a frame of a 60 Hz screen", flush=True)
    with server(options) as (address, process):
        found = asyncio.run(run(options, address, process))
    ways = {"url": options.url, "synthetic": options.synthetic, "serve": options.serve}
    machine.finish({"benchmark": "latency", **found, "server": ways, **machine.facts()}, options.save)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.latency", description=__doc__.splitlines()[0])
    parser.add_argument("--url", help="a server that runs already, with --mark (default: one is started)")
    parser.add_argument("--synthetic", action="store_true", help="synthetic frames in place of the tiny world")
    parser.add_argument("--viewers", type=int, nargs="+", default=[1, 2], metavar="N", help="pages (default: 1 2)")
    parser.add_argument("--presses", type=int, default=200, help="of each page (default: 200)")
    parser.add_argument(
        "--netem", type=_shape, action="append", metavar="SHAPE", help="a link, such as delay=40,loss=3"
    )
    parser.add_argument("--opens", type=int, default=5, help="warm pages to open; 0: none (default: 5)")
    parser.add_argument("--prompts", type=int, default=8, help="new prompts; 0: none (default: 8)")
    parser.add_argument("--recoveries", type=int, default=1, help="engines to kill; 0: none (default: 1)")
    parser.add_argument("serve", nargs="*", help="more options of chunkcast serve, after --")
    machine.add_output(parser)
    return parser


def _shape(text: str) -> Shape:
    try:
        return Shape.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


if __name__ == "__main__":
    sys.exit(main())
