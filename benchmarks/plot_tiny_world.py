"""What `python -m benchmarks.tiny_world --save NAME` measured, as one picture; needs the extra `bench`.

python -m benchmarks.plot_tiny_world benchmarks/results/NAME.json -o docs/tiny-world.png
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes

from benchmarks.plots import plot

MODEL, RENDERER, LIMIT = "#d9722e", "#5b7f95", "#999999"
JUDGED = ("place", "hour", "weather")


def main(argv: list[str] | None = None) -> int:
    return plot("plot_tiny_world", __doc__.splitlines()[0], draw, argv)


def draw(result: dict[str, Any], output: Path) -> None:
    """One panel a row that was measured."""
    rows = result["rows"]
    panels = [(draw_row, rows[name]) for name, draw_row in PANELS if name in rows]
    if not panels:
        raise SystemExit("the result has no row that can be drawn; measure sessions, returns or long")
    height = -(-len(panels) // 2)
    figure, axes = pyplot.subplots(height, 2, figsize=(11, 3.4 * height), layout="constrained", squeeze=False)
    for axis, (draw_row, found) in zip(axes.flat, panels, strict=False):
        draw_row(axis, found)
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    figure.suptitle(f"the tiny world, commit {result['commit']}, {result['gpu'] or result['cpu']}", fontsize=11)
    figure.savefig(output, dpi=110)


def _obeys(axis: Axes, found: dict[str, Any]) -> None:
    names = [(kind, what) for kind in ("turn", "walk") for what in ("obeyed", "right", "near")]
    _bars(axis, [f"{kind}\n{what}" for kind, what in names], found, lambda who: [who[k][w] for k, w in names])
    axis.set_title("obeys: within 2 chunks of a key, in any chunk, within 25% of the amount", fontsize=9)


def _follows(axis: Axes, found: dict[str, Any]) -> None:
    kinds = [kind for kind in ("start", "changed", "after") if kind in found]
    labels = [f"{name}\n{kind}" for kind in kinds for name in JUDGED]
    both = {who: [found[kind][who].get(name) for kind in kinds for name in JUDGED] for who in ("model", "renderer")}
    _bars(axis, labels, both, lambda shares: shares)
    axis.axhline(0.9, color=LIMIT, linewidth=0.8)
    axis.set_title("follows the prompt: at first, 8 frames after a change, later", fontsize=9)


def _bars(axis: Axes, labels: Sequence[str], found: dict[str, Any], heights: Callable[[Any], list]) -> None:
    """Model beside renderer."""
    for shift, who, colour in ((-0.2, "model", MODEL), (0.2, "renderer", RENDERER)):
        places = [place + shift for place in range(len(labels))]
        axis.bar(places, [height or 0 for height in heights(found[who])], 0.4, label=who, color=colour)
    axis.set_xticks(range(len(labels)), labels, fontsize=7)
    axis.set_ylim(0, 1.02)
    axis.legend(fontsize=7, loc="lower right")


def _faithful(axis: Axes, found: dict[str, Any]) -> None:
    """PSNR against the renderer at the same pose, by what is shown."""
    values = {
        "all": found["psnr"]["median"],
        "elsewhere": found["psnr_renderer_elsewhere"]["median"],
        **found["psnr_by_place"],
        **found["psnr_by_hour"],
        **found["psnr_by_weather"],
    }
    axis.bar(range(len(values)), list(values.values()), color=[RENDERER if n == "elsewhere" else MODEL for n in values])
    axis.set_xticks(range(len(values)), list(values), rotation=60, fontsize=7)
    axis.set_ylabel("dB, median", fontsize=8)
    axis.set_title("the model against the renderer at the same pose (elsewhere: the renderer's own)", fontsize=9)


def _remembers(axis: Axes, found: dict[str, Any]) -> None:
    pairs = {"again": "before and after", "truth": "model, renderer", "vae": "VAE alone", "renderer_elsewhere": "other"}
    for place, name in enumerate(pairs):
        spread = found[name]["psnr"]
        axis.bar(place, spread["median"], color=MODEL if place < 2 else RENDERER)
        axis.plot([place, place], [spread["percentile_5"], spread["median"]], color="black")
        axis.text(place, 1, f"SSIM {found[name]['ssim']['median']:.2f}", ha="center", fontsize=7, color="white")
    axis.axhline(22, color=LIMIT, linewidth=0.8)
    axis.set_xticks(range(len(pairs)), pairs.values(), fontsize=7)
    axis.set_ylabel("dB, median and 5th percentile", fontsize=8)
    axis.set_title("remembers: back at a pose after a minute", fontsize=9)


def _sharpness(axis: Axes, found: dict[str, Any]) -> None:
    series = found["series"]
    axis.plot(series["frame"], series["sharpness_ratio"], color=MODEL)
    axis.axhspan(0.8, 1.2, color=LIMIT, alpha=0.25)
    axis.set_ylim(0, None)
    axis.set_xlabel("frame", fontsize=8)
    axis.set_title("stays well: sharpness, of the renderer's", fontsize=9)


def _colours(axis: Axes, found: dict[str, Any]) -> None:
    series = found["series"]
    axis.plot(series["colour_frame"], series["colour_distance"], color=MODEL, label="model from renderer")
    axis.plot(series["colour_frame"], series["colour_distance_seeds"], color=RENDERER, label="two seeds")
    axis.set_ylim(0, None)
    axis.set_xlabel("frame", fontsize=8)
    axis.legend(fontsize=7)
    axis.set_title("stays well: distance of colours", fontsize=9)


def _drift(axis: Axes, found: dict[str, Any]) -> None:
    series = found["series"]
    axis.plot(series["frame"], series["psnr_median"], color=MODEL, label="median of the seeds")
    axis.plot(series["frame"], series["psnr_least"], color=MODEL, alpha=0.4, label="least")
    axis.set_xlabel("frame", fontsize=8)
    axis.set_ylabel("dB", fontsize=8)
    axis.legend(fontsize=7)
    axis.set_title("stays well: the model against the renderer at the same pose", fontsize=9)


PANELS = (
    ("obeys", _obeys),
    ("follows", _follows),
    ("faithful", _faithful),
    ("remembers", _remembers),
    ("stays_well", _sharpness),
    ("stays_well", _colours),
    ("stays_well", _drift),
)


if __name__ == "__main__":
    sys.exit(main())
