"""From a key at the worker to the first frame that obeys it, without a network: python -m benchmarks.key_to_frame

The engine in its process, as the service runs it (stream/worker.py), and viewers who take each frame at its time and
press keys at evenly spread phases of the chunk. For each of --schedule and --chunk-latents an engine is built, and
looked at by as many viewers as each of --slots says. Counted are `ready`, until the first frame that obeys the key is
in the server's process, and `shown`, until its time has come; medians and 90th percentiles in milliseconds. Beside it
frames/s a viewer, and chunks that came late. Weights are random but for the tiny world, so --chunk-latents says nothing
of quality: a model is made for the length that its preset has. Needs neither aiortc nor fastapi.

The limit, printed for each engine, is half a chunk's playing time (or making, if that is longer) and one chunk's
making, as prewarm measured it; where pictures leave as they are decoded, it is a little less. Each figure is printed
and kept as soon as it is there: what ends it early, Ctrl-C or SIGTERM, takes no more than what was under way. Ends with
one JSON line.
"""

import argparse
import itertools
import queue
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import pipeline.engine
from benchmarks import machine
from pipeline.chunk import Chunk, Control, Ended, SessionSpec, World
from pipeline.engine import Engine, _grey_png
from pipeline.presets import at_chunk, find_preset
from pipeline.vae_precision import VAE_PRECISIONS
from stream.orders import Close, Died, Event, Open, Progress, Ready, Refused, Steer
from stream.pacer import Pacer
from stream.schedule import LEAD_SECONDS, grant_of
from stream.worker import Worker

PROMPT = "a meadow by day"
WAYS = ("precision", "vae_precision", "attention", "graphs", "cache")
"""Options of the engine that a result names."""
READY_SECONDS = 540.0
SETTLE_CHUNKS = 12
"""Each viewer sees so many before anything counts, or all that a chunk depends on if those are more."""
SLOWEST = 6
"""An engine that makes chunks so many times slower than they play is counted from before that."""
GOLDEN = 0.618034
"""Of a chunk: by so much the phase of each key is behind that of the one before, so that even a few lie evenly."""


class Screen:
    """One viewer: takes frames at their time in a thread, and lets the engine go as far as the service would."""

    def __init__(self, name: str, world: World, lead: float, send: Callable[[Any], None]) -> None:
        self.name, self._world, self._lead, self._send = name, world, lead, send
        self.pacer = Pacer(world.fps, 1000)
        self._changed, self._over = threading.Condition(), False
        self._next, self._sequence = 0, 0
        self._pressed: dict[int, float] = {}
        self._unseen: dict[int, float] = {}
        self.ready: list[float] = []
        self.shown: list[float] = []
        self.frames = self._late = 0
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def begin(self, seed: int, picture: bytes | None) -> None:
        """Open the session and look."""
        self._send(Open(self.name, SessionSpec(self.name, PROMPT, seed, picture)))
        self._grant()
        self._thread.start()

    def put(self, chunk: Chunk) -> None:
        """Frames have come."""
        now = time.monotonic()
        with self._changed:
            for sequence in [each for each in self._pressed if each <= chunk.sequence]:
                pressed = self._pressed.pop(sequence)
                self.ready.append(now - pressed)
                self._unseen[sequence] = pressed
            self.pacer.put(chunk)
            self._changed.notify()

    def press(self) -> None:
        """Hold another key from now on."""
        self._sequence += 1
        keys = frozenset(("jl"[self._sequence % 2],)) if self._world.camera else frozenset()
        with self._changed:
            self._pressed[self._sequence] = time.monotonic()
        self._send(Steer(self.name, Control(self._sequence, keys)))

    def forget(self) -> None:
        """Count from here."""
        with self._changed:
            self.ready.clear()
            self.shown.clear()
            self.frames, self._late = 0, self.pacer.late

    @property
    def late(self) -> int:
        """How many chunks came late."""
        return self.pacer.late - self._late

    def end(self) -> None:
        """Look no more."""
        with self._changed:
            self._over = True
            self._changed.notify()
        self._thread.join()
        self._send(Close(self.name))

    def _grant(self) -> None:
        self._send(grant_of(self.name, self._next, self.pacer, self._world, self._lead))

    def _watch(self) -> None:
        with self._changed:
            while not self._over:
                delay = self.pacer.delay()
                if delay == 0:
                    self._take()
                else:
                    self._changed.wait(delay)

    def _take(self) -> None:
        paced, now = self.pacer.pop(), time.monotonic()
        self._next, self.frames = paced.frame + 1, self.frames + 1
        for sequence in [each for each in self._unseen if each <= paced.sequence]:
            self.shown.append(now - self._unseen.pop(sequence))
        self._grant()


class Stage:
    """A worker with an engine, `factory` as its own, and the screens that look at it. `lead` is in seconds."""

    def __init__(self, factory: str, options: dict[str, Any], lead: float) -> None:
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._screens: dict[str, Screen] = {}
        self._lead = lead
        self._names = itertools.count()
        self.worker = Worker(factory, options, self._deliver, lead=lead)

    def start(self) -> World:
        """The world, once it is warm. SystemExit with the engine's words when it cannot be."""
        begun = time.monotonic()
        self.worker.start()
        while (left := begun + READY_SECONDS - time.monotonic()) > 0:
            try:
                event = self._events.get(timeout=left)
            except queue.Empty:
                break
            match event:
                case Ready(world):
                    self.world = world
                    return world
                case Died(reason):
                    raise SystemExit(reason)
                case Progress(done, total):
                    print(f"  {done} of {total} warm after {time.monotonic() - begun:.0f} s", flush=True)
        raise SystemExit(f"it was not warm after {READY_SECONDS:.0f} s")

    def _deliver(self, event: Event) -> None:
        match event:
            case Chunk(session):
                if screen := self._screens.get(session):  # once, for look() may change them meanwhile
                    screen.put(event)
            case Ready() | Died() | Refused() | Ended() | Progress():
                self._events.put(event)

    def _check(self) -> None:
        """SystemExit with the engine's words when it broke or a session ended: nothing that follows would count."""
        while not self._events.empty():
            if isinstance(event := self._events.get(), Died | Refused | Ended):
                raise SystemExit(event.reason)

    def _settle(self, screens: list[Screen], chunk: float) -> None:
        chunks = max(SETTLE_CHUNKS, self.world.resume_chunks)
        end = time.monotonic() + SLOWEST * chunks * chunk
        while time.monotonic() < end and min(each.frames for each in screens) < chunks * self.world.chunk_frames:
            self._check()
            time.sleep(chunk / 4)

    def look(self, viewers: int, seconds: float, picture: bytes | None) -> dict[str, Any]:
        """So many viewers press keys for some seconds. `picture` is what each world begins with."""
        names = [f"viewer-{next(self._names)}" for _ in range(viewers)]
        screens = [Screen(name, self.world, self._lead, self.worker.send) for name in names]
        self._screens = {screen.name: screen for screen in screens}
        chunk = self.world.chunk_frames / self.world.fps
        for seed, screen in enumerate(screens):
            screen.begin(seed, picture)
            time.sleep(0.37 * chunk)  # no one comes in step
        self._settle(screens, chunk)
        for screen in screens:
            screen.forget()
        every = max(chunk, *self.world.chunk_seconds[:viewers])
        _press_all(screens, every, seconds)
        found = {
            "viewers": viewers,
            "least_fps": round(min(screen.frames for screen in screens) / seconds, 2),
            "chunks_late": sum(screen.late for screen in screens),
        }
        time.sleep(2 * every)  # the last answers
        self._check()
        for screen in screens:
            screen.end()
        found["presses"] = sum(len(screen.shown) for screen in screens)
        for name in ("ready", "shown"):
            found[f"{name}_ms"] = _quantiles([each for screen in screens for each in getattr(screen, name)])
        return found


def _press_all(screens: list[Screen], every: float, seconds: float) -> None:
    """Each screen's keys, in a thread of its own."""
    threads = [
        threading.Thread(target=_press, args=(screen, seed, every, seconds), daemon=True)
        for seed, screen in enumerate(screens)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _press(screen: Screen, seed: int, every: float, seconds: float) -> None:
    begun, phase = time.monotonic(), random.Random(seed).random()
    for number in itertools.count():
        at = every * (number + (phase + GOLDEN * number) % 1)
        time.sleep(max(0.0, begun + min(at, seconds) - time.monotonic()))
        if at >= seconds:
            break
        screen.press()


def _quantiles(seconds: list[float]) -> dict[str, float | None]:
    if not seconds:
        return {"p50": None, "p90": None}
    return {f"p{share}": round(1000 * float(np.percentile(seconds, share)), 1) for share in (50, 90)}


def build(preset: str, **options: Any) -> Engine:
    """In the engine's process: the engine of that preset."""
    return pipeline.engine.build(preset, **options)


def measure(options: argparse.Namespace, schedule: str, latents: int | None) -> Iterator[dict[str, Any]]:
    """One engine, and each number of viewers."""
    preset = find_preset(options.preset)
    preset = preset if latents is None else at_chunk(preset, latents)
    weights = options.weights or (None if preset.vae == "tiny" else "random")
    counts = [int(count) for count in options.slots.split(",")]
    named = {name: getattr(options, name) for name in ("device", "context", *WAYS)}
    stage = Stage(
        "benchmarks.key_to_frame:build",
        {"preset": preset.name, "weights": weights, "slots": max(counts), "schedule": schedule} | named,
        options.lead / 1000,
    )
    begun = time.monotonic()
    try:
        world = stage.start()
        chunk = world.chunk_frames / world.fps
        made = [round(seconds, 4) for seconds in world.chunk_seconds]
        way = {"schedule": world.schedule, "chunk_latents": preset.chunk, "chunk_plays_s": chunk, "chunk_made_s": made}
        limit = 1000 * (max(chunk, made[0]) / 2 + made[0])
        print(f"{way}, warm after {time.monotonic() - begun:.0f} s; limit: p50 {limit:.0f} ms", flush=True)
        picture = _grey_png() if world.image == "required" else None
        for count in counts:
            yield {**way, **stage.look(count, options.seconds, picture)}
    finally:
        stage.worker.stop()


def measure_all(options: argparse.Namespace, runs: list[dict[str, Any]], result: dict[str, Any]) -> None:
    """Each way in its turn into `runs`, a part of `result`; one that cannot be is said and passed over."""
    chunks = [None] if options.chunk_latents is None else [int(each) for each in options.chunk_latents.split(",")]

    def take(run: dict[str, Any]) -> None:
        runs.append(run)
        print(run, flush=True)
        machine.keep(result, options.save)

    for latents, schedule in itertools.product(chunks, options.schedule.split(",")):
        try:
            for run in measure(options, schedule, latents):
                take(run)
        except (ValueError, SystemExit) as error:
            take({"schedule": schedule, "chunk_latents": latents, "failed": str(error)})


def main(argv: list[str] | None = None) -> int:
    """Measure, print the table."""
    options = _parser().parse_args(argv)
    runs: list[dict[str, Any]] = []
    result = {"benchmark": "key_to_frame", "preset": options.preset, "lead_ms": options.lead, "runs": runs}
    result |= {name: getattr(options, name) for name in WAYS}
    result["commit"] = machine.commit()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        measure_all(options, runs, result)
    except KeyboardInterrupt:
        print("ended early", flush=True)
    print(table(runs))
    machine.finish({**result, **machine.facts()}, options.save)  # last: asking for its name takes memory of a GPU
    return 0


def table(runs: list[dict[str, Any]]) -> str:
    """As Markdown, to be put into NOTES.md."""
    lines = ["| schedule | latents a chunk | viewers | ready p50, p90 ms | shown p50, p90 ms | frames/s | late |"]
    lines.append("|---|---|---|---|---|---|---|")
    for run in runs:
        if "failed" in run:
            lines.append(f"| {run['schedule']} | {run['chunk_latents']} | | {run['failed']} | | | |")
            continue
        ready, shown = (f"{run[name]['p50']}, {run[name]['p90']}" for name in ("ready_ms", "shown_ms"))
        way = [run[name] for name in ("schedule", "chunk_latents", "viewers")]
        cells = [*way, ready, shown, run["least_fps"], run["chunks_late"]]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.key_to_frame", description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--weights", help="a checkpoint, or random; default: random, the tiny world's own for tiny")
    parser.add_argument("--slots", default="1,2", help="viewers at once (default: %(default)s)")
    parser.add_argument("--schedule", default="auto", help="such as turns,batch (default: %(default)s)")
    parser.add_argument("--chunk-latents", metavar="N,...", help="latent frames a chunk (default: the preset's own)")
    parser.add_argument("--precision", default="bf16", help="of the linears: bf16 or fp8 (default: bf16)")
    parser.add_argument("--vae-precision", default="exact", choices=VAE_PRECISIONS, help="default: exact")
    parser.add_argument("--graphs", action="store_true", help="on a GPU, as the service's option")
    parser.add_argument("--attention", default="auto", metavar="NAME", help="as the service's option")
    parser.add_argument("--cache", default="plain", choices=("plain", "fp8"), help="as the service's option")
    parser.add_argument("--context", type=int, help="latent frames kept by a preset without a window")
    parser.add_argument("--lead", type=float, default=1000 * LEAD_SECONDS, metavar="MS", help="default: %(default)g")
    parser.add_argument("--seconds", type=float, default=40.0, help="of keys for each (default: %(default)g)")
    parser.add_argument("--device", default="auto")
    machine.add_output(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
