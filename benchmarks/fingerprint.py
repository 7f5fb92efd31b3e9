"""The bits of the latents of fixed small sessions: `python -m benchmarks.fingerprint`.

A change that claims the same result must leave these as they are. Each case is a model at small size, one watched
session with fixed seed, prompts and keys; its fingerprint is the sha256 of its clean latents. Under each schedule that
gives a slot the bits that it has alone, it is made several ways that must agree to the last bit: alone, beside a
stranger, with the prompt cache warm, after prewarm(), and resumed from a session file halfway. (After prewarm() with a
new prompt heard by cross-attention alone: how much of the past is written anew at once is measured there.)

Bits depend on the processor, so they are compared with those recorded for the same machine and torch in
results/fingerprints.json; --record writes them. Exit status: 0 all agree, 1 they do not, 2 nothing is recorded here.
"""

import argparse
import hashlib
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks import machine
from pipeline.chunk import Control, Session, SessionSpec
from pipeline.engine import Engine
from pipeline.load import Parts, RandomText, load_parts
from pipeline.presets import CAMERA_CHANNELS, Preset, find_preset
from pipeline.sampler import steps_from_indexes
from pipeline.text_encoder import PromptCache
from pipeline.transformer import Transformer, TransformerConfig
from pipeline.vae import WanVAE, WanVAEConfig

RECORD = machine.RESULTS / "fingerprints.json"
CHUNKS, HALFWAY = 10, 6
CONTROLS = {1: Control(1, frozenset("w")), 4: Control(2, frozenset("wl"), "a desert at night"), 7: Control(3)}

SMALL_WAN = Preset(
    name="small-wan",
    summary="a camera model of the Wan family at small width, random weights",
    transformer=TransformerConfig(
        dim=256, ffn_dim=512, heads=4, layers=3, in_channels=16, text_dim=64, text_rows=16,
        camera_channels=CAMERA_CHANNELS["cam"],
    ),
    steps=steps_from_indexes((0, 250, 500, 750), shift=5.0),
    chunk=2,
    window=8,
    sink=2,
    control="cam",
    image="none",
    height=64,
    width=96,
)  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    device = torch.device("cuda" if torch.cuda.is_available() and options.device != "cpu" else "cpu")
    found, differing = {}, []
    for name, make in cases(device).items():
        for group, takes in ways(device).items():
            prints = {way: take(make) for way, take in takes.items()}
            found[f"{name}, {group}"] = first = prints["alone"]
            for way, bits in prints.items():
                print(f"{name:10} {group:16} {way:18} {bits[:16]} {'' if bits == first else 'DIFFERS'}", flush=True)
            differing += [f"{name}, {group}, {way}" for way, bits in prints.items() if bits != first]
    known = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    where = machine_key(device)
    if options.record:
        RECORD.write_text(json.dumps(known | {where: found}, indent=1, sort_keys=True) + "\n")
    recorded = known.get(where)
    status = 1 if differing or recorded not in (None, found) else 0 if recorded or options.record else 2
    said = {0: "as recorded", 1: "not the same bits", 2: "nothing is recorded for this machine (--record)"}[status]
    result = {"benchmark": "fingerprint", "where": where, "found": found, "differing": differing, "said": said}
    result["error_in_a_batch"] = {name: batch_error(make) for name, make in cases(device).items()}
    print(json.dumps(result))
    return status


def cases(device: torch.device) -> dict[str, Callable[..., Engine]]:
    """Makers of engines; each call gives a fresh one over the same weights."""
    tiny = find_preset("tiny")
    parts = {"tiny": (tiny, load_parts(tiny, None, device)), "small-wan": (SMALL_WAN, small_parts(device))}

    def maker(preset: Preset, loaded: Parts) -> Callable[..., Engine]:
        return lambda **options: Engine(preset, loaded._replace(text=fresh_text(loaded)), device=device, **options)

    return {name: maker(*pair) for name, pair in parts.items()}


def small_parts(device: torch.device) -> Parts:
    """SMALL_WAN's random parts: bfloat16 on a GPU, float32 on a CPU, from one seed."""
    torch.manual_seed(0)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model = Transformer(SMALL_WAN.transformer).to(device, dtype).eval().requires_grad_(False)
    vae = WanVAE(WanVAEConfig(dim=16)).to(device).eval().requires_grad_(False)
    return Parts(model, vae, PromptCache(RandomText(SMALL_WAN.transformer.text_dim)))


def fresh_text(parts: Parts) -> PromptCache:
    return PromptCache(parts.text._encoder)


Way = Callable[[Callable[..., Engine]], str]


def ways(device: torch.device) -> dict[str, dict[str, Way]]:
    """By what must agree: ways to make the watched session, each from a maker of engines to a fingerprint."""
    schedules = ("turns",) if device.type == "cuda" else ("turns", "parallel")
    found = {schedule: _ways(schedule) for schedule in schedules}
    found["turns, swapped"] = {
        "alone": lambda make: watched(make(schedule="turns", prompt_change="swap")),
        "after prewarm": lambda make: watched(_warm(make(schedule="turns", prompt_change="swap"))),
    }
    return found


def _ways(schedule: str) -> dict[str, Way]:
    return {
        "alone": lambda make: watched(make(schedule=schedule)),
        "beside a stranger": lambda make: watched(make(schedule=schedule), stranger=True),
        "prompt cache warm": lambda make: [watched(engine := make(schedule=schedule)), watched(engine)][1],
        "resumed halfway": lambda make: resumed(make, schedule),
    }


def watched(engine: Engine, stranger: bool = False) -> str:
    """The fingerprint of the whole session in one go."""
    return fingerprint(latents(engine, stranger))


def latents(engine: Engine, stranger: bool) -> np.ndarray:
    """The clean latents of the whole session; a stranger joins two chunks later."""
    engine.open(SessionSpec("watched", "a meadow by day", 7))
    for chunk in range(CHUNKS):
        if stranger and chunk == 2:
            engine.open(SessionSpec("stranger", "a city of glass", 99))
        engine.control("stranger", Control(chunk, frozenset("sd")))
        _walk(engine, chunk)
    made = engine.snapshot("watched").latents
    for name in ("watched", "stranger"):
        engine.close(name)
    return made


def batch_error(make: Callable[..., Engine]) -> float:
    """How far a session beside a stranger in one batch is from itself alone: relative error of the latents."""
    alone, beside = (latents(make(schedule="batch"), stranger) for stranger in (False, True))
    return float(np.linalg.norm(beside - alone) / np.linalg.norm(alone))


def resumed(make: Callable[..., Engine], schedule: str) -> str:
    """The same with a session file and another engine between chunk HALFWAY and the next."""
    first, second = make(schedule=schedule), make(schedule=schedule)
    first.open(SessionSpec("watched", "a meadow by day", 7))
    for chunk in range(HALFWAY):
        _walk(first, chunk)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "halfway.session"
        first.snapshot("watched").save(file)
        second.resume(Session.load(file))
    for chunk in range(HALFWAY, CHUNKS):
        _walk(second, chunk)
    return fingerprint(second.snapshot("watched").latents)


def fingerprint(made: np.ndarray) -> str:
    """sha256 of the clean latents of all CHUNKS chunks, float32."""
    assert len(made) == CHUNKS, (len(made), CHUNKS)
    return hashlib.sha256(np.ascontiguousarray(made, np.float32).tobytes()).hexdigest()


def machine_key(device: torch.device) -> str:
    """What the bits depend on beside the code."""
    name = torch.cuda.get_device_name() if device.type == "cuda" else machine.processor()
    capability = "" if device.type == "cuda" else f" {torch.backends.cpu.get_cpu_capability()}"
    return f"{name}{capability}, torch {torch.__version__}"


def _walk(engine: Engine, chunk: int) -> None:
    if chunk in CONTROLS:
        engine.control("watched", CONTROLS[chunk])
    engine.step()


def _warm(engine: Engine) -> Engine:
    engine.prewarm()
    return engine


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fingerprint", description=__doc__.splitlines()[0])
    parser.add_argument("--record", action="store_true", help="keep what is found as this machine's")
    parser.add_argument("--device", choices=("auto", "cpu"), default="auto")
    return parser


if __name__ == "__main__":
    sys.exit(main())
