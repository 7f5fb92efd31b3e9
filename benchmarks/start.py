"""From the start of the engine's process until it is ready: `python -m benchmarks.start --preset NAME --weights PLACE`.

Starts the engine in a process of its own --starts times, as the service does, with folders for compiled code that are
empty at first: the first start compiles, the second finds what the first kept. Seconds from the start of the process
until Python and torch are there, the weights are in their place, and prewarm() is through, which is ready. The limit is
printed first: the weights' bytes at the rate at which this machine copies from its memory to the device. For true
weights run it twice: only then do their files lie in the page cache. (Random weights are made where they run.)
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import machine

CHILD = "CHUNKCAST_STARTED"
"""In the environment of a started process: when that was, seconds of time.monotonic(), which processes share."""
CACHES = (
    "TORCHINDUCTOR_CACHE_DIR",
    "TRITON_CACHE_DIR",
    "CUDA_CACHE_PATH",
    "FLASH_ATTENTION_CUTE_DSL_CACHE_DIR",
)
COPIED = 2**28


def main(argv: list[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    if CHILD in os.environ:
        print(json.dumps(started(options, float(os.environ[CHILD]))))
        return 0
    starts = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.starts):
            starts.append(start(sys.argv[1:] if argv is None else argv, Path(folder)))
            if not number:
                print(f"limit: {starts[0]['copy_seconds']} s to copy the weights to the device", flush=True)
            print(f"start {number + 1}: {starts[-1]}", flush=True)
    result = {"benchmark": "start", **machine.facts(), "preset": options.preset, "weights": options.weights}
    machine.finish(result | {"starts": starts}, options.save)
    return 0


def start(arguments: list[str], caches: Path) -> dict[str, Any]:
    """One process from its start to its end; SystemExit where it fails."""
    own = {name: str(caches / name.lower()) for name in CACHES}
    environment = {**os.environ, **own, CHILD: repr(time.monotonic())}
    command = [sys.executable, "-m", "benchmarks.start", *arguments]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"the engine did not start; its process ended with {done.returncode}")
    files = [file for file in caches.rglob("*") if file.is_file()]
    return json.loads(done.stdout.splitlines()[-1]) | {"compiled_files": len(files)}


def started(options: argparse.Namespace, begun: float) -> dict[str, Any]:
    """What the process itself measures."""
    import torch

    from pipeline.engine import build

    times = {"imported": time.monotonic()}
    engine = build(
        options.preset,
        options.weights,
        slots=options.slots,
        device=options.device,
        schedule=options.schedule,
        precision=options.precision,
        vae_precision=options.vae_precision,
        graphs=options.graphs,
    )
    if engine.device.type == "cuda":
        torch.cuda.synchronize()
    times["loaded"] = time.monotonic()
    world = engine.prewarm()
    times["ready"] = time.monotonic()
    found = {f"{name}_seconds": round(at - begun, 2) for name, at in times.items()}
    weights = sum(each.nbytes for each in engine._model.parameters())
    copy = weights / copy_rate(engine.device)
    return found | {"copy_seconds": round(copy, 4), "weights_gb": round(weights / 1e9, 2), "schedule": world.schedule}


def copy_rate(device: Any) -> float:
    """Bytes a second from the host's memory, as a file's pages lie in it, to the device."""
    import torch

    source, times = torch.ones(COPIED, dtype=torch.uint8), []
    for _ in range(4):
        begun = time.perf_counter()
        source.to(device, copy=True)  # from memory that is not pinned: the host waits
        times.append(time.perf_counter() - begun)
    return COPIED / statistics.median(times[1:])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.start", description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--weights", help="a checkpoint, or random; default: those that come with the preset")
    parser.add_argument("--starts", type=int, default=2, help="default: 2")
    parser.add_argument("--slots", type=int, default=2, help="default: 2")
    parser.add_argument("--schedule", default="auto")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--vae-precision", default="exact")
    parser.add_argument("--graphs", action="store_true")
    parser.add_argument("--device", default="auto")
    machine.add_output(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
