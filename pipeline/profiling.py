"""`chunkcast profile`: a trace of warm steps and what it says."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from pipeline.chunk import Ended, SessionSpec
from pipeline.digest import digest
from pipeline.engine import Engine

PROMPT = "a meadow by day"


def profile_engine(
    engine: Engine, sessions: int, chunks: int, trace: Path, progress: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Trace `chunks` warm steps of `sessions` live sessions into `trace` (JSON for chrome://tracing or Perfetto).

    The engine is warmed as prewarm() leaves it. Frames are taken on a thread of their own, as the service does.
    Returns the digest. Raises ValueError for fewer than one chunk, or a session that ends.
    """
    if chunks < 1:
        raise ValueError(f"{chunks} chunks were asked for; it must be at least 1")
    names = [f"profile-{number}" for number in range(sessions)]
    for seed, name in enumerate(names):
        engine.open(SessionSpec(name, PROMPT, seed, engine.warm_image()))
    try:
        with ThreadPoolExecutor(1, thread_name_prefix="frames") as taker:
            _run(engine, names, engine.window_chunks, taker, lambda: None)
            activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
            # Slots may run in threads of their own, which a profiler otherwise leaves out.
            threads = torch.profiler._ExperimentalConfig(profile_all_threads=True)
            with profile(activities=activities, experimental_config=threads, acc_events=True) as profiler:
                _run(engine, names, chunks, taker, progress)
    finally:
        for name in names:
            engine.close(name)
    profiler.export_chrome_trace(str(trace))
    return digest(json.loads(trace.read_text()), chunks)


def _run(engine: Engine, names: list[str], chunks: int, taker: ThreadPoolExecutor, progress: Callable) -> None:
    taken = []
    for _ in range(chunks):
        for begun in engine.begin(names):
            if isinstance(begun, Ended):
                raise ValueError(begun.reason)
            taken.append(taker.submit(begun.result))
        engine.wait()
        progress()
    for future in taken:
        if isinstance(result := future.result(), Ended):
            raise ValueError(result.reason)
