"""Does it run for hours? `python -m benchmarks.soak --minutes M`

Starts `chunkcast serve` with the tiny world and two viewers, who decode every frame, hold random keys and change their
prompts. One stays from the beginning to the end. The other comes and goes: it leaves, or its connection breaks and it
comes back with its token. Guests come, wait in line and leave again, all the time. In the middle the engine is killed.
Every few seconds the memory, files and threads of the server and of the engine are taken down.

Printed is a verdict against the goals: no picture stands for more than 1 s but for the kill, the world is seen again
8 s after it, memory and files stay as they are, and no error is in the log. A session's history fills for minutes and
is then as large as it gets (pipeline/revival.py), so an engine's memory is looked at from then on; of one that did not
live that long nothing is said. Compared is the least in the first and the last quarter of the time: the histories of
those who come and go lie above it.

Ctrl-C, SIGTERM or what breaks ends it early and keeps what was measured; with --save NAME that is also kept once a
minute, and a plot lies beside it at the end, if the extra `bench` is installed. Ends with one JSON line.
"""

import argparse
import asyncio
import contextlib
import itertools
import math
import os
import random
import signal
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any
from urllib.parse import urljoin

import av
import numpy as np
import websockets

from benchmarks import machine
from benchmarks.visitors import Page, engine_of, page_of, served, usage
from pipeline.presets import Preset, find_preset
from pipeline.revival import chunks_in_history
from stream.client import Over, _Picture

PROMPTS = (
    "a desert with columns at noon", "a forest at night", "a meadow in the rain", "a snowy forest at dusk",
    "a shore in the fog", "a town at dawn", "the sun comes up", "it begins to snow",
)  # fmt: skip
HOLD_SECONDS, PROMPT_SECONDS = (0.2, 3.0), (5.0, 20.0)
"""For so long a key is held, and a prompt is in force."""
SAY_AGAIN_SECONDS = 0.2
VISIT_SECONDS, AWAY_SECONDS = (30.0, 120.0), (0.5, 5.0)
GUEST_SECONDS, GUEST_STAYS = (3.0, 20.0), (0.2, 5.0)
SAMPLE_SECONDS = 5.0
FREEZE_SECONDS, RECOVERY_SECONDS = 1.0, 8.0
WAITING_SECONDS = 0.5
"""So long at most the pictures go on after the engine's end."""
SEEN_GAP_SECONDS = 0.15
"""Longer gaps between frames are kept one by one."""
FLAT_SHARE, FLAT_MB, FLAT_FILES = 0.05, 10.0, 5
WARM_SHARE, WARM_SECONDS = 0.2, 30.0
"""Of each process's life so much is left out before its memory must stay as it is; of an engine's no less than it takes
to fill a history, and so many seconds more for its viewers to be there."""
LEAST_SAMPLES = 4
"""So many must be left to tell anything."""
FAULTS = ("ERROR", "CRITICAL", "Traceback", "exception was never retrieved")


@dataclass
class Shown:
    """The frames that one viewer saw, by visits: `gaps` are (when it ended, seconds) of those that were long."""

    name: str
    frames: int = 0
    last: float | None = None
    all: list[float] = field(default_factory=list)
    gaps: list[tuple[float, float]] = field(default_factory=list)

    def see(self, now: float) -> None:
        """A frame was decoded."""
        self.frames += 1
        if self.last is not None:
            self.all.append(now - self.last)
            if now - self.last > SEEN_GAP_SECONDS:
                self.gaps.append((now, now - self.last))
        self.last = now

    def look_away(self) -> None:
        """What follows is another visit."""
        self.last = None


@dataclass
class Record:
    """All that was measured; times are monotonic seconds. `full_after` is how long a history fills, in seconds."""

    began: float
    shown: dict[str, Shown]
    samples: dict[str, list[dict[str, float]]] = field(default_factory=lambda: {"server": [], "engine": []})
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("keys", "prompts", "visits", "guests"), 0))
    broken: list[str] = field(default_factory=list)
    killed: float | None = None
    ended: float = 0.0
    full_after: float = 0.0


class Visitor:
    """Someone who looks, walks and wishes, over as many connections as it takes."""

    def __init__(self, name: str, address: str, record: Record, dice: random.Random) -> None:
        self._name, self._address, self._record, self._dice = name, address, record, dice
        self._token: str | None = None
        self._shown = record.shown[name]

    async def stay(self) -> None:
        """For ever."""
        while True:
            await self._visit(None)

    async def come_and_go(self) -> None:
        """For ever, with breaks: it leaves, or the connection breaks and it comes back as the same."""
        while True:
            leaves = await self._visit(self._dice.uniform(*VISIT_SECONDS))
            if leaves:
                self._token = None
            await asyncio.sleep(self._dice.uniform(*AWAY_SECONDS))

    async def _visit(self, seconds: float | None) -> bool:
        """One connection, for so long; whether the session has ended with it. What breaks it is kept."""
        self._record.counts["visits"] += 1
        leaves = self._dice.random() < 0.6
        hello = {"prompt": self._dice.choice(PROMPTS), **({"token": self._token} if self._token else {})}
        try:
            async with page_of(self._address, **hello) as page, self._looking(page) as (live, look):
                self._token = page.token
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(seconds):
                        await asyncio.gather(look, self._hold_keys(page, live), self._wish(page, live))
                if leaves:
                    await page.say(type="leave")
        except (OSError, Over, websockets.WebSocketException) as error:
            self._break(error)
            leaves = True
            await asyncio.sleep(1)
        return leaves

    def _break(self, error: BaseException) -> None:
        self._record.broken.append(f"{self._name}: {error!r}")

    @contextlib.asynccontextmanager
    async def _looking(self, page: Page) -> AsyncIterator[tuple[asyncio.Event, Any]]:
        """When it is live, and the work of hearing what comes and fetching the picture."""
        live, pictures = asyncio.Event(), list[_Picture]()

        async def see(frame: av.VideoFrame) -> None:
            self._shown.see(time.monotonic())

        async def listen() -> None:
            while True:
                message = await page.hear("live", "queued", "ended", "parked", seconds=math.inf)
                if message["type"] in ("ended", "parked"):
                    raise Over(message["reason"])
                if message["type"] == "live" and not pictures:
                    pictures.append(_Picture((), see, self._break))
                    await pictures[0].fetch(urljoin(self._address, "/whep?session="), page.token)
                live.set() if message["type"] == "live" else live.clear()

        self._shown.look_away()
        try:
            yield live, listen()
        finally:
            self._shown.look_away()
            for picture in pictures:
                await picture.close()

    async def _hold_keys(self, page: Page, live: asyncio.Event) -> None:
        numbers = itertools.count(1_000_000, 2)  # those of prompts lie between
        while True:
            await live.wait()
            held = self._dice.sample("wasdijkl", self._dice.randint(0, 2))
            self._record.counts["keys"] += 1
            self._seq, until = next(numbers), time.monotonic() + self._dice.uniform(*HOLD_SECONDS)
            while time.monotonic() < until:
                await page.say(type="keys", seq=self._seq, held=held)
                await asyncio.sleep(SAY_AGAIN_SECONDS)

    async def _wish(self, page: Page, live: asyncio.Event) -> None:
        while True:
            await asyncio.sleep(self._dice.uniform(*PROMPT_SECONDS))
            await live.wait()
            self._record.counts["prompts"] += 1
            await page.say(type="prompt", seq=self._seq + 1, text=self._dice.choice(PROMPTS))


async def guests(address: str, record: Record, dice: random.Random) -> None:
    """One after another comes, waits for a moment, and leaves with or without a word."""
    while True:
        await asyncio.sleep(dice.uniform(*GUEST_SECONDS))
        record.counts["guests"] += 1
        try:
            async with page_of(address) as page:
                await page.hear("queued", "live")
                await asyncio.sleep(dice.uniform(*GUEST_STAYS))
                if dice.random() < 0.8:
                    await page.say(type="leave")
        except (OSError, TimeoutError, websockets.WebSocketException) as error:
            record.broken.append(f"a guest: {error!r}")


async def sample(pid: int, record: Record) -> None:
    """Take down what the two processes have, again and again."""
    while True:
        for name, find in (("server", lambda: pid), ("engine", lambda: engine_of(pid))):
            with contextlib.suppress(OSError, KeyError, ValueError):  # between two engines there is none
                process = find()
                record.samples[name].append({"at": time.monotonic(), "pid": process, **usage(process)})
        await asyncio.sleep(SAMPLE_SECONDS)


async def kill_once(pid: int, record: Record, after: float) -> None:
    """End the engine as the kernel does when memory is short."""
    await asyncio.sleep(after)
    engine = engine_of(pid)
    record.killed = time.monotonic()
    os.kill(engine, signal.SIGKILL)
    print(f"the engine was killed after {after:.0f} s", flush=True)
    await asyncio.Event().wait()


async def soak(
    address: str, pid: int, seconds: float, seed: int, full_after: float, keep: Callable[[Record], None]
) -> Record:
    """So many seconds, or until Ctrl-C or SIGTERM, or until something breaks that should not; `keep` is called once a
    minute."""
    began = time.monotonic()
    record = Record(began, {name: Shown(name) for name in ("stays", "comes and goes")}, full_after=full_after)
    dice = random.Random(seed)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, asyncio.current_task().cancel)
    one, other = (Visitor(name, address, record, random.Random(dice.random())) for name in record.shown)
    work = (one.stay(), other.come_and_go(), guests(address, record, dice), sample(pid, record))
    others = (kill_once(pid, record, seconds / 2), report(record, keep))
    tasks = [asyncio.ensure_future(each) for each in (*work, *others)]
    try:
        done, _ = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()
    except asyncio.CancelledError:
        print("ended early", flush=True)
    except Exception as error:  # whatever it is: an hour's figures are not to be lost with it
        traceback.print_exc()
        record.broken.append(f"the benchmark itself: {error!r}")
    finally:
        record.ended = time.monotonic()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return record


async def report(record: Record, keep: Callable[[Record], None]) -> None:
    """A line a minute, so that one sees that it goes on."""
    for minute in itertools.count(1):
        await asyncio.sleep(60)
        worst = {name: round(max((gap for _, gap in one.gaps), default=0), 2) for name, one in record.shown.items()}
        held = {name: samples[-1]["mb"] for name, samples in record.samples.items() if samples}
        print(f"{minute} min: {record.counts}, longest gaps {worst} s, {held} MB", flush=True)
        keep(record)


# What it comes to


def summary(record: Record, log: str) -> dict[str, Any]:
    """What was measured, in plain numbers, and the verdict."""
    recovery = max((at - (record.killed or 0) for at, _ in _gaps(record, of_kill=True)), default=None)
    freezes = [seconds for _, seconds in _gaps(record, of_kill=False) if seconds > FREEZE_SECONDS]
    gaps = [gap for shown in record.shown.values() for gap in shown.all]
    faults = [line for line in log.splitlines() if any(map(line.count, FAULTS))]
    found = {
        "minutes": round(((record.ended or time.monotonic()) - record.began) / 60, 2),
        **record.counts,
        "frames": {shown.name: shown.frames for shown in record.shown.values()},
        "p50_gap_ms": round(1000 * float(np.percentile(gaps, 50)), 1) if gaps else None,
        "p99_gap_ms": round(1000 * float(np.percentile(gaps, 99)), 1) if gaps else None,
        "longest_gap_s": round(max((seconds for _, seconds in _gaps(record, of_kill=False)), default=0), 2),
        "freezes": [round(seconds, 2) for seconds in freezes],
        "recovery_s": None if recovery is None else round(recovery, 2),
        "history_full_after_minutes": round(record.full_after / 60, 2),
        "held": {name: held(samples, _warm_seconds(name, record)) for name, samples in record.samples.items()},
        "connections_broken": record.broken[:20],
        "faults_in_log": faults[:20],
    }
    return {**found, "verdict": verdict(found, record.killed is not None)}


def _gaps(record: Record, of_kill: bool) -> list[tuple[float, float]]:
    """Those gaps that the kill made, after the frames that waited, or all others."""
    killed = float("inf") if record.killed is None else record.killed
    all_ = [gap for shown in record.shown.values() for gap in shown.gaps]
    return [(at, seconds) for at, seconds in all_ if (at - seconds - WAITING_SECONDS <= killed <= at) == of_kill]


def _warm_seconds(process: str, record: Record) -> float:
    return record.full_after + WARM_SECONDS if process == "engine" and record.full_after else 0.0


def held(samples: list[dict[str, float]], warm_seconds: float) -> list[dict[str, float]]:
    """Of each process in its turn: MB (the least), files and threads (the median) after it became warm and at its end.

    Of one that was warm for too short a time there are its minutes alone. Warm is a process after `warm_seconds`, and a
    share of its life.
    """
    lives = [list(life) for _, life in itertools.groupby(samples, key=lambda one: one["pid"])]
    return [_held_by(life, warm_seconds) for life in lives]


def _held_by(life: list[dict[str, float]], warm_seconds: float) -> dict[str, float]:
    begun, whole = life[0]["at"], life[-1]["at"] - life[0]["at"]
    found: dict[str, float] = {"minutes": round(whole / 60, 2)}
    warm = [one for one in life if one["at"] - begun >= max(warm_seconds, WARM_SHARE * whole)]
    if len(warm) < LEAST_SAMPLES:
        return found
    quarter = max(1, len(warm) // 4)
    for name, count in (("mb", min), ("files", statistics.median), ("threads", statistics.median)):
        for end, part in (("first", warm[:quarter]), ("last", warm[-quarter:])):
            found[f"{name}_{end}"] = round(count(one[name] for one in part), 1)
    return found


def verdict(found: dict[str, Any], was_killed: bool) -> dict[str, bool | None]:
    """Which goals were met; None where the time was too short to tell."""
    told = {name: [life for life in lives if "mb_first" in life] for name, lives in found["held"].items()}
    lives = [life for lives in told.values() for life in lives]
    is_flat = all(_is_flat(life["mb_first"], life["mb_last"]) for life in lives)
    return {
        "no freeze over 1 s but for the kill": not found["freezes"],
        "recovery within 8 s": not was_killed
        or (found["recovery_s"] is not None and found["recovery_s"] <= RECOVERY_SECONDS),
        "memory flat": is_flat if all(told[name] for name in told if found["held"][name]) or not is_flat else None,
        "files flat": all(life["files_last"] - life["files_first"] <= FLAT_FILES for life in lives),
        "no errors in the log": not found["faults_in_log"],
        "no connection broke by itself": not found["connections_broken"],
    }


def _is_flat(first: float, last: float) -> bool:
    return last - first <= max(FLAT_MB, FLAT_SHARE * first)


def series(record: Record) -> dict[str, Any]:
    """Over time, in minutes since the beginning, for the plot."""

    def minute(at: float) -> float:
        return round((at - record.began) / 60, 3)

    return {
        "killed": None if record.killed is None else minute(record.killed),
        "gaps": {s.name: [(minute(at), round(gap, 3)) for at, gap in s.gaps] for s in record.shown.values()},
        "held": {
            name: [(minute(one["at"]), one["mb"], one["files"], one["threads"]) for one in samples]
            for name, samples in record.samples.items()
        },
    }


def run(options: argparse.Namespace, errors: IO[str]) -> dict[str, Any]:
    """The result; what there is of it is kept once a minute."""
    server = ["benchmarks.synthetic"] if options.synthetic else ["stream", "serve", "--port", "0", *options.serve]
    machine_facts = machine.facts()

    def result(record: Record) -> dict[str, Any]:
        # The server writes where this file's position is, so it is read without moving that.
        log = os.pread(errors.fileno(), os.fstat(errors.fileno()).st_size, 0).decode(errors="replace")
        world = "synthetic" if options.synthetic else "tiny"
        named = {"benchmark": "soak", "world": world, "seed": options.seed}
        return {**named, **summary(record, log), "series": series(record), **machine_facts}

    def keep(record: Record) -> None:
        machine.keep(result(record), options.save)

    # A session of its own: a Ctrl-C in the terminal is for us, and the server ends with us.
    with served(server, stderr=errors, start_new_session=True) as (address, process):
        full_after = 0.0 if options.synthetic else full_seconds(find_preset("tiny"))
        record = asyncio.run(soak(address, process.pid, 60 * options.minutes, options.seed, full_after, keep))
    return result(record)


def full_seconds(preset: Preset) -> float:
    """How long a viewer's history fills."""
    return chunks_in_history(preset) * preset.chunk_seconds


def main(argv: list[str] | None = None) -> int:
    """Soak, and say which goals were met; 1 when one was not."""
    options = _parser().parse_args(argv)
    print("limit: a frame every 62.5 ms, for ever, in the same memory", flush=True)
    with tempfile.TemporaryFile("w+") as errors:
        result = run(options, errors)
    for goal, met in result["verdict"].items():
        print(f"{ {True: 'met     ', False: 'NOT MET ', None: 'not told'}[met] } {goal}")
    if options.save:
        _draw(result, machine.RESULTS / f"{options.save}.png")
        machine.finish(result, options.save)
    else:
        machine.finish({name: value for name, value in result.items() if name != "series"}, None)
    return 1 if False in result["verdict"].values() else 0


def _draw(result: dict[str, Any], picture: Path) -> None:
    try:
        from benchmarks.plot_soak import draw
    except ImportError:
        print("no plot: install the extra `bench`, then python -m benchmarks.plot_soak", flush=True)
        return
    picture.parent.mkdir(exist_ok=True)
    draw(result, picture)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60.0, help="default: 60")
    parser.add_argument("--seed", type=int, default=1, help="of all that is random in it (default: 1)")
    parser.add_argument("--synthetic", action="store_true", help="frames that cost nothing in place of the tiny world")
    parser.add_argument("serve", nargs="*", help="more options of chunkcast serve, after --")
    machine.add_output(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
