"""What it costs to keep live sessions, so that they survive the engine: python -m benchmarks.keeping

A snapshot is taken between two steps, crosses a pipe as a pickle, and brings a session back with context passes. Bytes,
and medians of the milliseconds of each, for what a resume needs and for the whole history. Ends with one JSON line.
"""

import argparse
import pickle
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks import machine
from pipeline.chunk import SessionSpec
from pipeline.engine import Engine, build
from stream.runs import KEEP_BYTES_A_SECOND, KEEP_SECONDS
from stream.worker import RESUME_WINDOWS

TIMED = 20


def median_ms(work: Callable[[], Any], times: int) -> float:
    """Median milliseconds of `work`."""
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return round(1000 * statistics.median(seconds), 2)


def measure(engine: Engine, chunks: int | None) -> dict[str, Any]:
    """The cost of a snapshot of the session "live" with so many newest chunks, None for all."""
    data = engine.snapshot("live", chunks)

    def resume() -> None:
        engine.resume(data, "again", RESUME_WINDOWS)
        engine.close("again")

    return {
        "chunks": len(data.latents),
        "bytes": len(pickle.dumps(data)),
        "snapshot_ms": median_ms(lambda: engine.snapshot("live", chunks), TIMED),
        "pickle_ms": median_ms(lambda: pickle.loads(pickle.dumps(data)), TIMED),
        "resume_ms": median_ms(resume, 3),
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.keeping", description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--weights", help="a checkpoint, or random; default: those that come with the preset")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--chunks", type=int, default=60, help="how long the session is (default: 60)")
    machine.add_output(parser)
    options = parser.parse_args(argv)
    print(f"limit: {KEEP_BYTES_A_SECOND} bytes a second, at most every {KEEP_SECONDS:.0f} s")
    engine = build(options.preset, options.weights, slots=2, device=options.device, schedule="turns")
    engine.open(SessionSpec("live", "a desert", 1, engine.warm_image()))
    for _ in range(options.chunks):
        engine.step()
    costs = {"needed": measure(engine, 0), "all": measure(engine, None)}
    for name, cost in costs.items():
        print(f"{name}: " + ", ".join(f"{key} {value}" for key, value in cost.items()))
    facts = {"preset": options.preset, "made": options.chunks, **machine.facts()}
    machine.finish({"benchmark": "keeping", **costs, **facts}, options.save)
    return 0


if __name__ == "__main__":
    sys.exit(main())
