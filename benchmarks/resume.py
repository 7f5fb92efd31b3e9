"""What a resume costs and how near it comes: the tiny world, one session, parked after many chunks.

The numbers, by how many windows of context passes go before the window that the next chunk sees ("all": as many as
matter): seconds of Engine.resume, and the next chunk's latents against those of the run that was never parked, as
||a - b|| / ||b||. Limit: 0, the same bits.

    python -m benchmarks.resume [--chunks N]
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np

from pipeline.chunk import Control, Session, SessionSpec
from pipeline.engine import Engine, build

WINDOWS = (None, 2, 1, 0)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chunks", type=int, default=64, help="chunks before the park (default: 64)")
    options = parser.parse_args(arguments)
    print("limit: 0 s and 0, the same bits")
    engine = build("tiny", slots=1, device="cpu")
    engine.open(SessionSpec("walk", "a green meadow by day", 1))
    for chunk in range(options.chunks):
        engine.control("walk", Control(chunk, frozenset("wl" if chunk % 16 < 4 else "w")))
        engine.step()
    data, size = _through_a_file(engine.snapshot("walk"))
    engine.step()
    expected = engine.snapshot("walk").latents[-1]
    engine.close("walk")
    results = {_name(windows): _resume(engine, data, windows, expected) for windows in WINDOWS}
    for windows, facts in results.items():
        print(f"{windows:>4} windows before: {facts['seconds']:.2f} s, next chunk off by {facts['distance']:.1e}")
    facts = {"benchmark": "resume", "preset": "tiny", "chunks": options.chunks, "file_bytes": size, "results": results}
    print(json.dumps(facts))
    return 0


def _name(windows: int | None) -> str:
    return "all" if windows is None else str(windows)


def _through_a_file(data: Session) -> tuple[Session, int]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "walk.session"
        data.save(path)
        return Session.load(path), path.stat().st_size


def _resume(engine: Engine, data: Session, windows: int | None, expected: np.ndarray) -> dict[str, float]:
    begun = time.perf_counter()
    engine.resume(data, windows=windows)
    seconds = time.perf_counter() - begun
    engine.step()
    made = engine.snapshot("walk").latents[-1]
    engine.close("walk")
    return {"seconds": seconds, "distance": float(np.linalg.norm(made - expected) / np.linalg.norm(expected))}


if __name__ == "__main__":
    raise SystemExit(main())
