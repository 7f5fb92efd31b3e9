"""How long from the server to the screen, and what a link that becomes narrow does to the picture.

`python -m benchmarks.picture` shows pictures of 832x480 at 16 frames/s to a headless Chromium on this machine (CHROMIUM
names the program). Each carries the time at which it left the pacer in its pixels. The number is the median of
milliseconds until requestVideoFrameCallback, without and with the playout-delay extension, for both codecs.

`python -m benchmarks.picture --link` sends a texture that needs 590 kbit/s (320x192) over a link that is free for 8 s,
takes 250 kbit/s with 0.3 s of queue for 18 s, and is free again. The numbers are frames/s shown while it is narrow,
how long the picture stood still, in all and at most at once, and how long it takes until the link is trusted with the
full rate again.

Everything runs on one machine, so the absolute times are the machine's.
"""

import argparse
import asyncio
import json
import os
import shutil
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from playwright.async_api import Browser, async_playwright

from pipeline.chunk import Chunk
from stream.codec import bitrate_for
from stream.pacer import Paced, Pacer
from stream.playout import Bounds
from stream.webrtc import CODECS, PLAYOUT_DELAY, WATCH_SECONDS, Media, Peer, check_offer

FPS, WARM_FRAMES = 16, 32
NARROW, NARROW_FROM, NARROW_UNTIL, SECONDS = 250_000, 8, 26, 60
QUEUE_SECONDS = 0.3
BITS, BLOCK = 24, 16
"""The time in ms, modulo 2**BITS, as blocks of black and white in the top row."""

PAGE = """
<video muted autoplay playsinline></video>
<script>
const video = document.querySelector("video"), canvas = document.createElement("canvas");
canvas.width = BITS * BLOCK; canvas.height = BLOCK;
const context = canvas.getContext("2d", { willReadFrequently: true });
const peer = new RTCPeerConnection(), delays = [];
let shown = 0, since = Infinity, longest = 0, last = 0;
function onframe() {
  const now = Date.now() % 2 ** BITS;
  shown += 1;
  if (last > since) longest = Math.max(longest, now - last);
  last = now;
  context.drawImage(video, 0, 0);
  const row = context.getImageData(0, BLOCK / 2, canvas.width, 1).data;
  let then = 0;
  for (let bit = 0; bit < BITS; bit++) if (row[4 * BLOCK * (bit + 0.5)] > 128) then += 2 ** bit;
  delays.push(now - then);
  video.requestVideoFrameCallback(onframe);
}
async function offer() {
  peer.ontrack = ({ track }) => { video.srcObject = new MediaStream([track]); };
  peer.addTransceiver("video", { direction: "recvonly" });
  video.requestVideoFrameCallback(onframe);
  await peer.setLocalDescription();
  return peer.localDescription.sdp;
}
async function received() {
  return [...(await peer.getStats()).values()].find(({ type }) => type === "inbound-rtp");
}
</script>
"""


class Feed:
    """Frames without end, drawn by `draw(number)`; `stamp` writes the time into each when it leaves."""

    def __init__(self, draw: Callable[[int], np.ndarray]) -> None:
        self.pacer, self._draw, self._made = Pacer(FPS, 4 * FPS), draw, 0
        self._more()

    def _more(self) -> None:
        while len(self.pacer) < 8:
            frames = np.stack([self._draw(self._made + offset) for offset in range(4)])
            self.pacer.put(Chunk("a.1", self._made // 4, self._made, frames))
            self._made += 4

    def took(self, paced: Paced) -> None:
        stamp(paced.image)
        self._more()

    def sent(self, paced: Paced, rtp: int | None) -> None:
        """No one asks."""


def stamp(image: np.ndarray) -> None:
    """Write the time into an image's top row."""
    now = round(time.time() * 1000) % 2**BITS
    bits = [255 * (now >> bit & 1) for bit in range(BITS)]
    image[:BLOCK, : BITS * BLOCK] = np.repeat(np.array(bits, np.uint8), BLOCK)[: image.shape[1], None]


def bar(number: int) -> np.ndarray:
    """A picture that is easy to encode."""
    image = np.full((480, 832, 3), 90, np.uint8)
    image[BLOCK:, 4 * number % 832 :][:, :12] = 250
    return image


def texture() -> Callable[[int], np.ndarray]:
    """Pictures that are hard to encode: a fine texture that slides."""
    wide = np.random.default_rng(1).integers(60, 200, (96, 700, 3), np.uint8).repeat(2, 0).repeat(2, 1)
    return lambda number: np.ascontiguousarray(wide[:, 3 * number % 1000 :][:, :320])


class Link:
    """Stands before a peer's transport: holds back what exceeds `rate` bits/s, drops what its queue cannot hold."""

    def __init__(self, peer: Peer) -> None:
        transport = peer._sender.transport  # type: ignore[union-attr]
        self._send, self._free, self.rate, self.dropped = transport._send_rtp, 0.0, float("inf"), 0
        transport._send_rtp = self

    async def __call__(self, data: bytes) -> None:
        now = time.monotonic()
        self._free = max(self._free, now)
        if self._free - now > QUEUE_SECONDS:
            self.dropped += 1
            return
        self._free += 8 * len(data) / self.rate
        if self._free - now < 0.002:
            await self._send(data)
        else:
            asyncio.get_running_loop().call_later(self._free - now, lambda: asyncio.ensure_future(self._late(data)))

    async def _late(self, data: bytes) -> None:
        try:
            await self._send(data)
        except ConnectionError:
            return  # the peer has closed meanwhile


async def watch(browser: Browser, feed: Feed, media: Media) -> tuple[Any, Peer]:
    """A page of the browser that shows a feed, and the peer that sends it."""
    page = await browser.new_page()
    await page.set_content(PAGE.replace("BITS", str(BITS)).replace("BLOCK", str(BLOCK)))
    peer = Peer(feed, FPS, media)
    answer = await peer.answer(check_offer(await page.evaluate("offer()")))
    await page.evaluate("(sdp) => peer.setRemoteDescription({ type: 'answer', sdp })", answer)
    return page, peer


async def delay(browser: Browser, codec: str, bounds: Bounds | None, seconds: float) -> dict[str, Any]:
    """Milliseconds from pacer to screen."""
    page, peer = await watch(browser, Feed(bar), Media(codec=codec, playout_delay=bounds))
    await asyncio.sleep(seconds)
    found = sorted((await page.evaluate("delays"))[WARM_FRAMES:])
    stats = await page.evaluate("received()")
    await peer.close()
    await page.close()
    tenth = len(found) // 10
    buffer = 1000 * stats["jitterBufferDelay"] / stats["jitterBufferEmittedCount"]
    return {
        "codec": codec,
        "playout_delay": "off" if bounds is None else "{}-{}".format(*bounds),
        "ms": statistics.median(found),
        "ms_10": found[tenth],
        "ms_90": found[-1 - tenth],
        "jitter_buffer_ms": round(buffer, 1),
    }


async def narrow(browser: Browser, codec: str) -> dict[str, Any]:
    """What is seen of a link that becomes narrow and wide again, and what is sent into it."""
    page, peer = await watch(browser, Feed(texture()), Media(codec=codec))
    link, shown, sent = Link(peer), [0], []
    for second in range(SECONDS):
        link.rate = NARROW if NARROW_FROM <= second < NARROW_UNTIL else float("inf")
        if second == NARROW_FROM - 1:
            await page.evaluate("since = Date.now() % 2 ** BITS".replace("BITS", str(BITS)))
        for _ in range(round(1 / WATCH_SECONDS)):
            await asyncio.sleep(WATCH_SECONDS)
            await peer.is_lost()
        shown.append(await page.evaluate("shown"))
        sent.append(peer.bitrate)
    stats, longest = await page.evaluate("received()"), await page.evaluate("longest")
    await peer.close()
    await page.close()
    frames = np.diff(shown)
    need = bitrate_for(320, 192, FPS)
    back = [at + 1 - NARROW_UNTIL for at in range(NARROW_UNTIL, SECONDS) if sent[at] >= need]
    return {
        "codec": codec,
        "frames_a_second": frames.tolist(),
        "fps_while_narrow": round(float(frames[NARROW_FROM:NARROW_UNTIL].mean()), 1),
        "stood_still_seconds": round(stats["totalFreezesDuration"], 1),
        "longest_standstill_seconds": round(longest / 1000, 2),
        "kbit_every_5_s": [rate // 1000 for rate in sent[::5]],
        "full_rate_again_after_seconds": back[0] if back else None,
        "packets_dropped": link.dropped,
        "key_frames": stats["keyFramesDecoded"],
    }


async def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Every number that was asked for."""
    chromium = shutil.which(os.environ.get("CHROMIUM", "chromium"))
    if chromium is None:
        raise SystemExit("needs Chromium: name it with CHROMIUM=/path/to/chromium")
    arguments = ["--no-sandbox", "--autoplay-policy=no-user-gesture-required"]
    results = []
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium, args=arguments)
        for codec in CODECS:
            if options.link:
                results.append(await narrow(browser, codec))
            else:
                for bounds in (None, PLAYOUT_DELAY):
                    results.append(await delay(browser, codec, bounds, options.seconds))
                    print(results[-1], flush=True)
        await browser.close()
    return results


def main() -> None:
    """Print the numbers, the limit first."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.picture", description=__doc__)
    parser.add_argument("--link", action="store_true", help="the narrow link instead of the delay")
    parser.add_argument("--seconds", type=float, default=12.0, help="of each delay (default: 12)")
    options = parser.parse_args()
    if options.link:
        print(f"limit: {FPS} frames/s shown, 0 s of standing still")
    else:
        print("limit: the encoder's and decoder's time and half a frame of a 60 Hz screen, about 10 ms")
    print(json.dumps(asyncio.run(run(options))))


if __name__ == "__main__":
    main()
