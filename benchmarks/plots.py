"""The command line that the plots share: a result's JSON in, one picture out."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def plot(name: str, description: str, draw: Callable[[dict[str, Any], Path], None], argv: list[str] | None) -> int:
    """`python -m benchmarks.NAME RESULT -o PNG`: have `draw` make the picture of what the result says. Returns 0."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=description)
    parser.add_argument("result", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args(argv)
    draw(json.loads(options.result.read_text()), options.output)
    return 0
