"""What a step of the tiny world's training costs, and where its time goes: `python -m benchmarks.train_step`.

Of each kind of step the milliseconds of one as the training makes it (on a GPU a recorded graph), and what its kernels
take, by name, in one that is not recorded. Data is noise, which costs the same. Ends with one JSON line.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks import machine
from pipeline.presets import find_preset
from pipeline.tiny.load import TinyWorld, make_tiny
from pipeline.tiny.muon import matrices_of
from pipeline.tiny.plan import PLANS, Plan
from pipeline.tiny.train_jointly import Learners, Lesson
from pipeline.tiny.train_transformer import Objective, _learner, compile_blocks
from pipeline.tiny.trainee import Graphed, Trainee
from pipeline.tiny.vae import FRAMES, TinyVAE

KINDS: dict[str, int | None] = {"alone": None, "true past": 0, "own past": 2}
REPEATS = 20
SHOWN = 25


def main(argv: list[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    plan, device = PLANS[options.size], torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = {}
    for name in options.kinds.split(","):
        print(f"== {name}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            learn, inputs = _step(name, plan, device, Path(folder) / "none.pt")
        found[name] = {
            "ms": round(_milliseconds(learn, inputs, options.repeats), 2),
            "kernels": _kernels(learn, inputs),
        }
        print(f"{name}: {found[name]['ms']} ms", flush=True)
        for kernel, share in found[name]["kernels"].items():
            print(f"  {share:8.3f} ms  {kernel}", flush=True)
    result = {"benchmark": "train_step", **machine.facts(), "size": options.size, "steps": found}
    machine.finish(result, options.save)
    return 0


def _step(name: str, plan: Plan, device: torch.device, path: Path) -> tuple[Callable[..., Tensor], tuple[Tensor, ...]]:
    """A step of this kind and what it is given. There is no checkpoint at `path`."""
    torch.manual_seed(0)
    world = TinyWorld(*(part.to(device) for part in make_tiny()))
    world.vae.to(memory_format=torch.channels_last)
    objective = Objective(world, find_preset("tiny")).to(device)
    compile_blocks(objective)
    if name == "joint":
        return _lesson(world.vae, objective, device, path), _shots(plan, device)
    trainee = Trainee(objective, plan.rate, path, matrices=objective.matrices)
    latents = torch.randn(plan.batch, plan.chunks, *find_preset("tiny").latent_shape, device=device).squeeze(3)
    return _learner(trainee, KINDS[name]), (latents, *_walks(plan.batch, plan.chunks, device))


def _lesson(vae: TinyVAE, objective: Objective, device: torch.device, path: Path) -> Lesson:
    vae.encode_pictures.requires_grad_(False)
    decoder = vae.decode_latent
    matrices = objective.matrices, matrices_of(decoder)
    learners = (Trainee(part, 1e-4, path, own) for part, own in zip((objective, decoder), matrices, strict=True))
    return Lesson(vae, Learners(*learners))


def _shots(plan: Plan, device: torch.device) -> tuple[Tensor, ...]:
    preset = find_preset("tiny")
    shape = (plan.joint_batch, plan.chunks, 3, FRAMES, preset.height, preset.width)
    pixels = torch.randint(256, shape, dtype=torch.uint8, device=device)
    return (pixels, *_walks(plan.joint_batch, plan.chunks, device))


def _walks(clips: int, chunks: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Pose and scenes of so many clips."""
    pose = torch.rand(clips, chunks, 2, 4, dtype=torch.float64, device=device)
    return pose, torch.zeros(clips, chunks, 4, dtype=torch.int64, device=device)


def _milliseconds(learn: Callable[..., Tensor], inputs: tuple[Tensor, ...], repeats: int) -> float:
    graphed = Graphed(learn, *inputs)
    graphed(*inputs).item()
    begun = time.perf_counter()
    for _ in range(repeats):
        result = graphed(*inputs)
    result.item()
    return 1000 * (time.perf_counter() - begun) / repeats


def _kernels(learn: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> dict[str, float]:
    """Milliseconds by kernel, on a CPU by operator, the longest first."""
    on_gpu = inputs[0].is_cuda
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as seen:
        learn(*inputs).item()
    spent: dict[str, Any] = {}
    for event in seen.key_averages():
        microseconds = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        spent[event.key[:90]] = spent.get(event.key[:90], 0.0) + microseconds / 1000
    longest = sorted(spent.items(), key=lambda item: -item[1])[:SHOWN]
    return {name: round(milliseconds, 3) for name, milliseconds in longest}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", default=",".join((*KINDS, "joint")), help="default: %(default)s")
    parser.add_argument("--size", choices=PLANS, default="full", help="small: for a CPU (default: full)")
    parser.add_argument("--repeats", type=int, default=REPEATS, help="steps that are timed (default: %(default)s)")
    machine.add_output(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
