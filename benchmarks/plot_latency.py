"""What `python -m benchmarks.latency --save NAME` measured, as one picture; needs the extra `bench`.

python -m benchmarks.plot_latency benchmarks/results/NAME.json -o docs/latency.png
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes

from benchmarks.plots import plot

COLOURS = {
    "to_server": "#8e6fb0",
    "boundary": "#c9c9c9",
    "denoise": "#d9722e",
    "decode": "#e8a86a",
    "hand_over": "#f2d3b3",
    "queue": "#5b7f95",
    "encode": "#3f9c7c",
    "network": "#7cc3a6",
    "jitter_buffer": "#b8c24a",
    "browser_decode": "#7a8f2a",
    "display": "#4f5d66",
}
BIN_MS = 25


def main(argv: list[str] | None = None) -> int:
    return plot("plot_latency", __doc__.splitlines()[0], draw, argv)


def draw(result: dict[str, Any], output: Path) -> None:
    """Left how long presses took, right where the time went; a row each number of viewers and link."""
    runs = [(name, run) for name, run in _runs(result) if run["ms"]]
    if not runs:
        raise SystemExit("the result has no press that was answered")
    figure, axes = pyplot.subplots(len(runs), 2, figsize=(12, 0.8 + 2.4 * len(runs)), squeeze=False)
    longest = max(max(run["ms"]) for _, run in runs)
    for (name, run), (left, right) in zip(runs, axes, strict=True):
        _histogram(left, name, run, longest)
        _waterfall(right, run)
    figure.suptitle(f"key to pixel, commit {result['commit']}, {result['gpu'] or result['cpu']}", fontsize=11)
    figure.tight_layout()
    figure.savefig(output, dpi=110)
    pyplot.close(figure)


def _runs(result: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each run of a result with its name."""
    for viewers, run in result.get("viewers", {}).items():
        yield f"{viewers} viewer{'s' * (int(viewers) > 1)}", run
    for link in result.get("links", ()):
        shape = ", ".join(f"{name} {value:g}" for name, value in link["link"].items() if value and name != "queue")
        for viewers, run in link["viewers"].items():
            yield f"{viewers} viewer{'s' * (int(viewers) > 1)}, {shape}", run


def _histogram(axis: Axes, name: str, run: dict[str, Any], longest: float) -> None:
    found = run["key_to_pixel_ms"]
    axis.hist(run["ms"], bins=range(0, int(longest) + 2 * BIN_MS, BIN_MS), color=COLOURS["queue"])
    for row, share in enumerate(("p50", "p90", "p99")):
        axis.axvline(found[share], color=COLOURS["denoise"], linewidth=0.9)
        height = axis.get_ylim()[1] * (0.98 - 0.1 * row)
        axis.text(found[share], height, f" {share} {found[share]:.0f}", fontsize=7, va="top")
    unanswered = f", {run['unanswered']} unanswered" if run["unanswered"] else ""
    axis.set_title(f"{name}: {len(run['ms'])} presses{unanswered}", fontsize=9)
    axis.set_xlabel("ms from the key's event to the display", fontsize=8)


def _waterfall(axis: Axes, run: dict[str, Any]) -> None:
    """The mean parts, one after the other: they add up to the mean of the whole."""
    at = 0.0
    for row, (name, part) in enumerate(run["parts_ms"].items()):
        axis.barh(row, part["mean"], left=at, color=COLOURS[name])
        axis.text(at + max(part["mean"], 0) + 2, row, f"{part['mean']:.1f}", fontsize=7, va="center")
        at += part["mean"]
    axis.set_yticks(range(len(run["parts_ms"])), [name.replace("_", " ") for name in run["parts_ms"]], fontsize=7)
    axis.invert_yaxis()
    axis.set_xlim(0, 1.08 * at)
    axis.set_xlabel("ms, means", fontsize=8)
    whole = run["key_to_pixel_ms"]["mean"]
    axis.set_title(f"parts: {at:.1f} of {whole:.1f} ms", fontsize=9)


if __name__ == "__main__":
    sys.exit(main())
