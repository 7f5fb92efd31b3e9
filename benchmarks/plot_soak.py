"""What `python -m benchmarks.soak --save NAME` measured, as one picture; needs the extra `bench`.

python -m benchmarks.plot_soak benchmarks/results/NAME.json -o docs/soak.png
"""

import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes

from benchmarks.plots import plot

COLOURS = {"server": "#5b7f95", "engine": "#d9722e", "stays": "#d9722e", "comes and goes": "#5b7f95"}
LIMIT = "#999999"


def main(argv: list[str] | None = None) -> int:
    return plot("plot_soak", __doc__.splitlines()[0], draw, argv)


def draw(result: dict[str, Any], output: Path) -> None:
    """Gaps between frames, memory and files over time."""
    series = result["series"]
    figure, (gaps, memory, files) = pyplot.subplots(3, 1, figsize=(10, 8), sharex=True, layout="constrained")
    _draw_gaps(gaps, series)
    for axis, column, title in ((memory, 1, "memory, MB"), (files, 2, "open files")):
        for name, points in series["held"].items():
            axis.plot([one[0] for one in points], [one[column] for one in points], color=COLOURS[name], label=name)
        axis.set_ylim(0, None)
        axis.set_title(title, fontsize=9)
        axis.legend(fontsize=7)
    files.set_xlabel("minutes", fontsize=8)
    figure.suptitle(
        f"{result['minutes']:g} minutes of the {result['world']} world, commit {result['commit']}, {result['cpu']}, "
        f"{result['cores']} cores",
        fontsize=11,
    )
    figure.savefig(output, dpi=110)
    pyplot.close(figure)


def _draw_gaps(axis: Axes, series: dict[str, Any]) -> None:
    for name, points in series["gaps"].items():
        axis.plot([at for at, _ in points], [gap for _, gap in points], ".", color=COLOURS[name], label=f"who {name}")
    if series["killed"] is not None:
        axis.axvline(series["killed"], color=LIMIT, linestyle="--", label="the engine is killed")
    axis.axhline(1, color=LIMIT, linewidth=0.8)
    axis.set_yscale("log")
    axis.set_title("gaps between displayed frames that are longer than 150 ms, seconds", fontsize=9)
    axis.legend(fontsize=7)


if __name__ == "__main__":
    sys.exit(main())
