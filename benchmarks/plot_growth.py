"""What `python -m benchmarks.growth --save NAME` measured, as one picture; needs the extra `bench`.

python -m benchmarks.plot_growth benchmarks/results/NAME.json -o docs/growth.png
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes

from benchmarks.plots import plot

MEASURED, FLOOR = "#d9722e", "#333333"


def main(argv: list[str] | None = None) -> int:
    return plot("plot_growth", __doc__.splitlines()[0], draw, argv)


def draw(result: dict[str, Any], output: Path) -> None:
    """A panel a line; points that did not fit are left out."""
    points = [point for point in result["points"] if "failed" not in point]
    lines = list(dict.fromkeys(point["line"] for point in points))
    figure, axes = pyplot.subplots(1, len(lines), figsize=(4.5 * len(lines), 3.8), squeeze=False, layout="constrained")
    for axis, line in zip(axes[0], lines, strict=True):
        _draw_line(axis, line, [point for point in points if point["line"] == line])
    figure.suptitle(
        f"{result['preset']}, commit {result['commit']}, {result.get('gpu') or result['cpu']}",
        fontsize=10,
    )
    figure.savefig(output, dpi=110)
    pyplot.close(figure)


def _draw_line(axis: Axes, line: str, points: Sequence[dict[str, Any]]) -> None:
    places = range(len(points))
    axis.bar(places, [point["seconds_a_chunk"] for point in points], color=MEASURED, label="measured")
    axis.plot(places, [point["floor_seconds"] for point in points], "_", color=FLOOR, markersize=24, label="floor")
    axis.set_xticks(places, [point["at"].replace(" ", "\n", 1) for point in points], fontsize=7)
    axis.set(title=line, ylabel="seconds a chunk")
    axis.legend(fontsize=7, markerscale=0.4)


if __name__ == "__main__":
    sys.exit(main())
