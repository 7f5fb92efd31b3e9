"""What `python -m benchmarks.lead --save NAME` measured, as one picture; needs the extra `bench`.

python -m benchmarks.plot_lead benchmarks/results/NAME.json -o docs/lead.png
"""

import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes

from benchmarks.plots import plot

COLOURS = {1: "#d9722e", 2: "#5b7f95"}
GOALS = {1: (350, 500), 2: (500, 700)}
"""Milliseconds from the key to the pixel: median and 90th percentile, by viewers."""


def main(argv: list[str] | None = None) -> int:
    return plot("plot_lead", __doc__.splitlines()[0], draw, argv)


def draw(result: dict[str, Any], output: Path) -> None:
    """Answers and standing pictures over the lead."""
    figure, (answers, stands) = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    leads = sorted({run["lead_ms"] for run in result["runs"]})
    for viewers in sorted({run["viewers"] for run in result["runs"]}):
        runs = [run for run in result["runs"] if run["viewers"] == viewers]
        places = [leads.index(run["lead_ms"]) for run in runs]
        _draw_answers(answers, viewers, places, runs)
        _draw_stands(stands, viewers, places, runs)
    for axis in (answers, stands):
        axis.set_xticks(range(len(leads)), [f"{lead:g}" for lead in leads])
        axis.set_xlabel("lead, ms", fontsize=8)
        axis.set_ylim(0, max(1, axis.get_ylim()[1]))
        axis.legend(fontsize=7, handlelength=4)
    figure.suptitle(
        f"the {result['world']} world, commit {result['commit']}, {result['cpu']}, {result['cores']} cores", fontsize=11
    )
    figure.savefig(output, dpi=110)


def _draw_answers(axis: Axes, viewers: int, places: list[int], runs: list[dict[str, Any]]) -> None:
    colour = COLOURS.get(viewers, "black")
    for name, style in (("p50_ms", "o-"), ("p90_ms", "o--")):
        label = f"{viewers} viewer{'s' * (viewers > 1)}, {name[:3]}"
        axis.plot(places, [run[name] for run in runs], style, color=colour, label=label)
    for goal in GOALS.get(viewers, ()):
        axis.axhline(goal, color=colour, linewidth=0.6, alpha=0.5)
    axis.set_title("from the key to the first frame that obeys it, ms (thin: goals to the pixel)", fontsize=9)


def _draw_stands(axis: Axes, viewers: int, places: list[int], runs: list[dict[str, Any]]) -> None:
    label = f"{viewers} viewer{'s' * (viewers > 1)}"
    axis.plot(places, [run["stood_a_minute"] for run in runs], "o-", color=COLOURS.get(viewers, "black"), label=label)
    axis.set_title("times a minute that a picture stood for more than two frames", fontsize=9)


if __name__ == "__main__":
    sys.exit(main())
