"""What every result says of where it comes from, and how it is printed and kept."""

import argparse
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

RESULTS = Path(os.environ.get("CHUNKCAST_RESULTS") or Path(__file__).parent / "results")
"""Where results are kept; the variable is for a machine that keeps only one folder of what is written on it."""


def facts() -> dict[str, Any]:
    """The commit ("+" behind it where the tree has changed since), the processor and, if torch sees one, the GPU."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"commit": commit(), "cpu": processor(), "cores": _cores(), "gpu": gpu, "torch": torch.__version__}


def commit() -> str:
    """The short hash of HEAD; outside a checkout what CHUNKCAST_COMMIT says, or "unknown"."""
    head = _git("rev-parse", "--short", "HEAD")
    return (
        head + "+" * bool(_git("status", "--porcelain", "--untracked-files=no"))
        if head
        else os.environ.get("CHUNKCAST_COMMIT", "unknown")
    )


def processor() -> str:
    """The processor's name as Linux has it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def add_output(parser: argparse.ArgumentParser) -> None:
    """The option that all benchmarks share."""
    parser.add_argument("--save", metavar="NAME", help=f"keep the result as {RESULTS.parent.name}/results/NAME.json")


def keep(result: dict[str, Any], name: str | None) -> None:
    """Keep the result in benchmarks/results if it has a name; what is there of that name is replaced.

    A long benchmark calls it after each row: what ends it early takes nothing that was measured.
    """
    if name:
        RESULTS.mkdir(parents=True, exist_ok=True)
        (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")


def finish(result: dict[str, Any], name: str | None) -> None:
    """Print the result as the last line, JSON; keep it in benchmarks/results if it has a name."""
    keep(result, name)
    print(json.dumps(result), flush=True)


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _git(*arguments: str) -> str:
    try:
        made = subprocess.run(
            # No lock for the sake of speed: somebody may commit meanwhile.
            ["git", "--no-optional-locks", *arguments],
            capture_output=True,
            text=True,
            cwd=Path(__file__).parent,
            check=False,
        )
    except OSError:
        return ""
    return made.stdout.strip() if made.returncode == 0 else ""
