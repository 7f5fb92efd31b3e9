"""How long until a viewer sees the world again when the engine's process ends: python -m benchmarks.recovery

A viewer by /ws and WebRTC watches the tiny world (or --synthetic frames, where only the service's own part counts). Its
engine is killed, or stopped so that it hangs; what counts is the time until the viewer is told, and until the next
frame. At last the server gets SIGTERM while the viewer watches, keeps the world, and the time until it has ended
counts. Medians of --times. The limit is how long a server takes to start, which is printed first. Ends with one JSON
line.
"""

import argparse
import asyncio
import contextlib
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx

from benchmarks import machine
from benchmarks.visitors import Page, Receiver, engine_of, page_of, served

WORKED_SECONDS = 12.0
"""So long an engine is left to work: after a shorter life the next one is not started at once."""


@contextlib.asynccontextmanager
async def watching(address: str, seconds: float) -> AsyncIterator[tuple[Page, Receiver]]:
    """A viewer who has watched for some seconds."""
    async with httpx.AsyncClient(base_url=address, timeout=30) as http, page_of(address) as page:
        receiver = Receiver()
        await page.hear("live")
        if not await receiver.fetch(http, "session=", page.token):
            raise SystemExit("the server refused a picture to a live session")
        await receiver.frames_there(1)
        await _listen_for(page, seconds)
        yield page, receiver
        with contextlib.suppress(httpx.TransportError):  # the server may be gone
            await receiver.close(http)


async def drain(address: str, process: subprocess.Popen) -> dict[str, Any]:
    """Seconds from SIGTERM to the end of a server that a viewer watches, and its exit code."""
    async with watching(address, 5):
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        code = await asyncio.to_thread(process.wait, 30)
        return {"seconds": round(time.monotonic() - began, 2), "exit_code": code}


async def recover(address: str, pid: int, how: signal.Signals) -> dict[str, float]:
    """Seconds from the signal until the viewer was told, was live again and saw a frame."""
    async with watching(address, WORKED_SECONDS) as (page, receiver):
        engine, began = engine_of(pid), time.monotonic()
        os.kill(engine, how)
        told = await page.hear("queued")
        assert told["restoring"], "the viewer is told that the world comes back"
        found = {"told": time.monotonic() - began}
        await page.hear("live", seconds=120)
        found["live"], seen = time.monotonic() - began, len(receiver.at)
        await receiver.frames_there(seen + 1, seconds=60)
        found["picture"] = time.monotonic() - began
    return {name: round(seconds, 2) for name, seconds in found.items()}


async def _listen_for(page: Page, seconds: float) -> None:
    """Hear what comes for so long."""
    try:
        await page.hear("ended", seconds=seconds)
    except TimeoutError:
        return
    raise SystemExit("the session ended by itself")


def _command(synthetic: bool, folder: str) -> list[str]:
    server = ["benchmarks.synthetic"] if synthetic else ["stream", "serve", "--port", "0"]
    return [*server, "--sessions", folder]


def _median(runs: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def main(argv: list[str] | None = None) -> int:
    """Print the limit, then what it took."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recovery", description=__doc__.splitlines()[0])
    parser.add_argument("--synthetic", action="store_true", help="synthetic frames in place of the tiny world")
    parser.add_argument("--times", type=int, default=3, help="of each (default: 3)")
    machine.add_output(parser)
    options = parser.parse_args(argv)
    began, found = time.monotonic(), dict[str, Any]()
    with tempfile.TemporaryDirectory() as folder, served(_command(options.synthetic, folder)) as (address, process):
        print(f"limit: {time.monotonic() - began:.1f} s, from a server's start until its engine is ready", flush=True)
        for name, how in (("killed", signal.SIGKILL), ("hangs", signal.SIGSTOP)):
            runs = [asyncio.run(recover(address, process.pid, how)) for _ in range(options.times)]
            found[name] = _median(runs)
            print(f"{name}: {found[name]} (all: {runs})", flush=True)
        found["drained"] = asyncio.run(drain(address, process))
    machine.finish({"benchmark": "recovery", **found, **machine.facts()}, options.save)
    return 0


if __name__ == "__main__":
    sys.exit(main())
