"""`chunkcast train tiny`: the small world from nothing, on one GPU, within three quarters of an hour.

Four parts in turn, each resumable: the VAE on pictures drawn by the renderer; the transformer with the text table on
latents of drawn clips; transformer and decoder together, on pictures; the recogniser of pictures' scenes.
"""

import argparse
import json
import math
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch

from pipeline.device import choose_device
from pipeline.presets import find_preset
from pipeline.tiny.drawer import compile_renderer
from pipeline.tiny.load import TinyWorld, make_tiny, save_tiny, take_over
from pipeline.tiny.plan import PLANS, Plan
from pipeline.tiny.train_jointly import train_jointly
from pipeline.tiny.train_recogniser import train_recogniser
from pipeline.tiny.train_transformer import Objective, train_transformer
from pipeline.tiny.train_transformer import measured as transformer_measured
from pipeline.tiny.train_vae import measured as vae_measured
from pipeline.tiny.train_vae import train_vae
from pipeline.tiny.trainee import Stop

MINUTES = {
    "VAE": "--vae-minutes",
    "transformer": "--minutes",
    "joint training": "--joint-minutes",
    "recogniser": "--recogniser-minutes",
}


def main(argv: list[str] | None = None) -> int:
    """Train, write the weights and a JSON of what was reached; 0, or 130 when stopped early with all kept.

    Raises ValueError for a device that is not there, and for a folder of another version.
    """
    options = _parser().parse_args(argv)
    plan, folder = _plan(options), _folder(options)
    device, draw_device = choose_device(options.device), _second_gpu(options.draw_device)
    folder.mkdir(parents=True, exist_ok=True)
    made_by, begun = _made_by(device, argv), time.monotonic()
    _prepare(device)
    with Stop() as stop:
        world = TinyWorld(*(part.to(device) for part in _beginning(options)))
        world.vae.to(memory_format=torch.channels_last)
        world, facts = _train(world, plan, folder, device, stop, draw_device)
        if stop.asked:
            print("stopped: the same command goes on; weights are written at its end", flush=True)
            return 130
    save_tiny(world, folder / "weights", made_by)
    result = {**made_by, "seconds": round(time.monotonic() - begun, 1), **facts, "plan": asdict(plan)}
    (folder / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result), flush=True)
    return 0


def to_be_judged(argv: list[str]) -> Path | None:
    """The weights of a training with these arguments, which benchmarks.tiny_world should see; None for a small one."""
    options = _parser().parse_args(argv)
    return _folder(options) / "weights" if options.size == "full" and options.benchmark else None


def _train(
    world: TinyWorld, plan: Plan, folder: Path, device: torch.device, stop: Stop, draw_device: str | None
) -> tuple[TinyWorld, dict[str, float]]:
    """The parts in turn, as far as Ctrl-C lets them."""
    facts = train_vae(world.vae, plan, folder, device, stop)
    world.vae.requires_grad_(False)
    if not stop.asked:
        world, more = train_transformer(world, plan, folder, device, stop, draw_device)
        facts |= more
    if not stop.asked:
        objective = Objective(world, find_preset("tiny")).to(device).eval()
        facts |= train_jointly(world.vae, objective, plan, folder, device, stop)
        facts |= vae_measured(world.vae, plan, device) | transformer_measured(objective, world.vae, plan, device)
    if not stop.asked:
        facts |= train_recogniser(world.recogniser, world.vae, plan, folder, device, stop)
    return world, facts


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="chunkcast train tiny", description=main.__doc__)
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="checkpoints and weights; an earlier run goes on (default: runs/tiny, of small ones runs/small)",
    )
    parser.add_argument("--size", choices=PLANS, default="full", help="small: a minute on a CPU, to see that it works")
    for part, flag in MINUTES.items():
        parser.add_argument(flag, type=_minutes, help=f"minutes for the {part}, earlier runs included; 0: not at all")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--draw-device", help="a second GPU that draws while the first one trains, such as cuda:1")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--no-benchmark",
        dest="benchmark",
        action="store_false",
        help="do not end with benchmarks.tiny_world, which takes as long again",
    )
    parser.add_argument(
        "--alone-share",
        type=_share,
        metavar="SHARE",
        help="share of the transformer's minutes without a past (0 goes on from one with it)",
    )
    parser.add_argument("--begin-with", metavar="DIR", help="weights of an earlier training, in place of random ones")
    return parser


def _minutes(text: str) -> float:
    minutes = _number(text)
    if not 0 <= minutes < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} are no minutes; they are a number from 0")
    return minutes


def _share(text: str) -> float:
    share = _number(text)
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no share; it is from 0 to 1")
    return share


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _folder(options: argparse.Namespace) -> Path:
    return Path(options.out or ("runs/tiny" if options.size == "full" else "runs/small"))


def _second_gpu(name: str | None) -> str | None:
    """Raises ValueError unless torch sees this GPU, before anything has been trained."""
    count = torch.cuda.device_count()
    if name is not None and name not in (seen := [f"cuda:{index}" for index in range(count)]):
        raise ValueError(f"there is no {name} to draw on; torch sees {', '.join(seen) or 'no GPU'}")
    return name


def _plan(options: argparse.Namespace) -> Plan:
    given = {flag.strip("-").replace("-", "_") for flag in (*MINUTES.values(), "--alone-share")}
    values = {name: getattr(options, name) for name in given if getattr(options, name) is not None}
    return replace(PLANS[options.size], **values)


def _prepare(device: torch.device) -> None:
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
        compile_renderer()


def _beginning(options: argparse.Namespace) -> TinyWorld:
    torch.manual_seed(options.seed)
    world = make_tiny()
    if options.begin_with and (anew := take_over(world, Path(options.begin_with))):
        print(f"beginning anew: {', '.join(anew)}", flush=True)
    return world


def _made_by(device: torch.device, argv: list[str] | None) -> dict[str, str]:
    arguments = sys.argv[1:] if argv is None else argv
    return {
        "command": " ".join(["chunkcast train tiny", *arguments]),
        "commit": _commit(),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
    }


def _commit() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    try:
        made = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent, check=False)
    except OSError:  # there is no git here
        return "unknown"
    return made.stdout.strip() or "unknown"


if __name__ == "__main__":
    sys.exit(main())
