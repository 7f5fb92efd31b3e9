"""Frames a second on real pages: `python -m benchmarks.live`.

Starts `chunkcast serve` with the tiny world, opens one and then two pages in headless Chromium, and counts the frames
that each page presents in --seconds. Beside it the time of a chunk by stage as /metrics has it, and the processor time
of the engine and the server. The limit is the preset's 16 frames/s. Needs the test extra and Chromium.
"""

import argparse
import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import machine

ROOT = Path(__file__).parent.parent
PROMPTS = ("a desert with columns at noon", "a forest at night")
READY_SECONDS = 120
CHROMIUM = ("--no-sandbox", "--autoplay-policy=no-user-gesture-required", "--disable-background-networking")
COUNT = "document.querySelector('video').getVideoPlaybackQuality().totalVideoFrames"


def main(argv: list[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    print(f"limit: 16 frames/s a viewer; {machine.processor()}", flush=True)
    runs = {}
    for viewers in range(1, options.viewers + 1):
        runs[viewers] = run = measure(viewers, options.seconds, options.serve)
        print(f"{viewers} viewer(s): {run['frames_a_second']} frames/s, chunk {run['chunk_ms']} ms", flush=True)
    machine.finish({"benchmark": "live", **machine.facts(), "seconds": options.seconds, "viewers": runs}, options.save)
    return 0


def measure(viewers: int, seconds: float, arguments: list[str]) -> dict[str, Any]:
    """One service with that many pages: each page's frames/s, and where the time went."""
    from playwright.sync_api import sync_playwright

    with service(arguments) as (address, ready_seconds, process), sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=chromium_path(), args=CHROMIUM)
        pages = [chromium.new_context(viewport={"width": 640, "height": 420}).new_page() for _ in range(viewers)]
        for page, prompt in zip(pages, PROMPTS, strict=False):
            page.goto(f"{address}/?seed=5&prompt={prompt.replace(' ', '+')}")
        for page in pages:
            page.wait_for_selector("html[data-state=live]", state="attached")
        time.sleep(2)
        before, begun = _snapshot(pages, address, process.pid), time.monotonic()
        time.sleep(seconds)
        after, elapsed = _snapshot(pages, address, process.pid), time.monotonic() - begun
        chromium.close()
    return {
        "frames_a_second": [round((b - a) / elapsed, 2) for a, b in zip(before[0], after[0], strict=True)],
        "chunk_ms": _means(before[1], after[1]),
        "processor_share": {who: round((after[2][who] - before[2][who]) / elapsed, 2) for who in after[2]},
        "ready_seconds": round(ready_seconds, 1),
    }


def chromium_path() -> str:
    """The Chromium to drive."""
    for name in (os.environ.get("CHROMIUM"), "chromium", "chromium-browser", "google-chrome"):
        if name and (path := shutil.which(name)):
            return path
    raise SystemExit("needs Chromium: install it, or name it with CHROMIUM=/path/to/chromium")


@contextlib.contextmanager
def service(arguments: list[str]) -> Iterator[tuple[str, float, subprocess.Popen]]:
    """`chunkcast serve` on a free port: its address, the seconds until it was ready, and its process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    begun, address = time.monotonic(), f"http://localhost:{port}"
    command = [sys.executable, "-m", "stream", "serve", "--port", str(port), *arguments]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        while not _is_ready(address):
            if process.poll() is not None or time.monotonic() - begun > READY_SECONDS:
                raise SystemExit("the service did not become ready; start it by hand to see why")
            time.sleep(0.1)
        yield address, time.monotonic() - begun, process
    finally:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
        process.kill()


def _is_ready(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/readyz", timeout=2) as response:
            return response.status == 200
    except (urllib.error.URLError, OSError):
        return False


def _snapshot(pages: list, address: str, pid: int) -> tuple[list[int], dict, dict[str, float]]:
    """Frames presented by page, seconds and count by stage, processor seconds of the engine and the server."""
    frames = [page.evaluate(COUNT) for page in pages]
    text = urllib.request.urlopen(f"{address}/metrics", timeout=5).read().decode()
    stages: dict[str, dict[str, float]] = defaultdict(dict)
    for kind, stage, value in re.findall(r'^chunkcast_chunk_seconds_(sum|count)\{stage="(\w+)"\} (\S+)$', text, re.M):
        stages[stage][kind] = float(value)
    return frames, stages, {"server": _processor_seconds(pid), "engine": sum(map(_processor_seconds, _children(pid)))}


def _means(before: dict, after: dict) -> dict[str, float]:
    """Milliseconds a chunk by stage between two snapshots."""
    return {
        stage: round(1000 * (b["sum"] - before[stage]["sum"]) / (b["count"] - before[stage]["count"]), 1)
        for stage, b in after.items()
    }


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()] + [
        int(child)
        for task in Path(f"/proc/{pid}/task").iterdir()
        if task.name != str(pid)
        for child in (task / "children").read_text().split()
    ]


def _processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.live", description=__doc__.splitlines()[0])
    parser.add_argument("--viewers", type=int, default=2, choices=(1, 2))
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("serve", nargs="*", help="more options of chunkcast serve, after --")
    machine.add_output(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
