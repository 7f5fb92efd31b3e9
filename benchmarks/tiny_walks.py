"""Walks through the tiny world: what is held and said chunk by chunk, and the engine that makes them.

A chunk is one latent frame, four video frames. Poses are (chunks, 4) float64, where the viewer stands in the last frame
of each chunk.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.tiny_truth import REDUCTION
from pipeline import camera
from pipeline.camera import FRAMES_PER_LATENT
from pipeline.chunk import Chunk, Control, Ended, SessionSpec
from pipeline.engine import Engine
from pipeline.presets import find_preset
from pipeline.steering import starting_pose
from pipeline.tiny import scene
from pipeline.tiny.clips import OWN_THINGS
from pipeline.tiny.scene import Scene
from pipeline.tiny.text import KINDS
from pipeline.tiny.trainee import Stop

PRESET = find_preset("tiny")
PITCH_LIMIT = float(np.radians(PRESET.pitch_limit))
TURN_DEGREES = 2
REPORT_SECONDS = 5.0
LONGEST_HOLD = 8
"""Chunks, so keys are held for half a second to two."""


class Walk(NamedTuple):
    """A session as it is to be: keys (one set a chunk) and new prompts by chunk, and what is meant to be seen.

    `scenes` is what holds from a chunk on, by chunk. `small` and `full` are the chunks whose last frame is kept.
    """

    spec: SessionSpec
    keys: tuple[frozenset[str], ...]
    scenes: dict[int, Scene]
    prompts: dict[int, str]
    small: frozenset[int]
    full: frozenset[int]


@dataclass
class Record:
    """What came of a walk; pictures are uint8 (3, H, W) on the engine's device, by chunk.

    `changes` are mean absolute differences, in [0, 1], of each chunk's last picture from the one before, from chunk 1
    on; `understood` is how each prompt was taken, by chunk.
    """

    walk: Walk
    small: dict[int, Tensor] = field(default_factory=dict)
    full: dict[int, Tensor] = field(default_factory=dict)
    changes: list[Tensor] = field(default_factory=list)
    understood: dict[int, str] = field(default_factory=dict)
    chunks: int = 0
    ended: str | None = None
    last: Tensor | None = None


# What is held


def random_keys(draw: np.random.Generator, chunks: int) -> tuple[frozenset[str], ...]:
    """Keys drawn at random, each set held for some chunks."""
    held: list[frozenset[str]] = []
    while len(held) < chunks:
        held += [_some_keys(draw)] * int(draw.integers(2, LONGEST_HOLD + 1))
    return tuple(held[:chunks])


def _some_keys(draw: np.random.Generator) -> frozenset[str]:
    """Mostly walking ahead, often turning, now and then the rest."""
    ahead = draw.choice(["w", "s", ""], p=[0.55, 0.15, 0.3])
    aside = draw.choice(["a", "d", ""], p=[0.12, 0.12, 0.76])
    turn = draw.choice(["j", "l", ""], p=[0.25, 0.25, 0.5])
    tilt = draw.choice(["i", "k", ""], p=[0.06, 0.06, 0.88])
    return frozenset(f"{ahead}{aside}{turn}{tilt}")


def closed_path(draw: np.random.Generator, chunks: int) -> tuple[frozenset[str], ...]:
    """Keys of each video frame of a way of `chunks` chunks that ends where it began, on other ground than it went.

    Some way, a rest, a turn to the opposite of where one looked at first, the same way again, and a turn back: the
    second time every step is the first one's turned by half a circle, so they cancel. Takes at least 47 chunks.
    """
    turning = 2 * 180 // TURN_DEGREES
    count = (FRAMES_PER_LATENT * chunks - turning) // 2 // FRAMES_PER_LATENT
    assert count > 0, f"{chunks} chunks leave no time to walk beside turning around"
    leg = [keys - set("ik") for keys in random_keys(draw, count) for _ in range(FRAMES_PER_LATENT)]
    turned = TURN_DEGREES * sum(("l" in keys) - ("j" in keys) for keys in leg)
    around = _turn(180 - turned)
    rest = [frozenset()] * (FRAMES_PER_LATENT * chunks - 2 * len(leg) - 2 * len(around))
    return (*leg, *rest, *around, *leg, *around)


def _turn(degrees: int) -> list[frozenset[str]]:
    """The shorter way round."""
    degrees = (degrees + 180) % 360 - 180
    return [frozenset("l" if degrees > 0 else "j")] * (abs(degrees) // TURN_DEGREES)


def per_frame(walk: Walk) -> list[frozenset[str]]:
    """The keys held in each video frame, a script's first."""
    held = [keys for keys in walk.keys for _ in range(FRAMES_PER_LATENT)]
    return [*walk.spec.script[: len(held)], *held[len(walk.spec.script) :]]


def poses(walk: Walk) -> Tensor:
    """(chunks + 1, 4): the starting pose, then the one in each chunk's last frame."""
    pose = starting_pose(PRESET, walk.spec.seed)
    found = [pose]
    for number, keys in enumerate(per_frame(walk), 1):
        pose = camera.step(pose, keys, PITCH_LIMIT)
        if number % FRAMES_PER_LATENT == 0:
            found.append(pose)
    return torch.tensor(found, dtype=torch.float64)


# What is said


def random_scene(draw: np.random.Generator) -> Scene:
    """Every place, hour and weather as often."""
    place, thing, hour, weather = (int(draw.integers(kinds)) for kinds in KINDS)
    return Scene(place, 0 if draw.random() < OWN_THINGS else thing, hour, weather)


def worded(draw: np.random.Generator, wanted: Mapping[str, int]) -> str:
    """A prompt that names `wanted` attributes in any of the vocabulary's words, place first."""
    words = [_word(draw, name, wanted[name]) for name in ("place", "thing", "hour", "weather") if name in wanted]
    return ", ".join(words)


def _word(draw: np.random.Generator, attribute: str, index: int) -> str:
    meanings = scene.vocabulary().items()
    known = sorted(" ".join(words) for words, meaning in meanings if meaning == (attribute, index))
    return str(draw.choice(known))


def first_prompt(draw: np.random.Generator, wanted: Scene) -> str:
    """Half the time the plain sentence, else synonyms."""
    if draw.random() < 0.5:
        return scene.sentence(wanted)
    named = wanted._asdict()
    if not wanted.thing:
        del named["thing"]
    return worded(draw, named)


def changed(draw: np.random.Generator, before: Scene) -> tuple[Scene, str]:
    """Another scene, and the prompt that leads there: it names at least one of place, hour and weather."""
    new = random_scene(draw)
    named = [name for name in ("place", "hour", "weather") if draw.random() < 0.6]
    named = [name for name in named if getattr(new, name) != getattr(before, name)]
    if not named:
        return changed(draw, before)
    wanted = {name: getattr(new, name) for name in named}
    return before._replace(**wanted), worded(draw, wanted)


def scene_at(walk: Walk, chunk: int) -> Scene:
    """What is meant to be seen in `chunk`."""
    return walk.scenes[max(first for first in walk.scenes if first <= chunk)]


# What the engine makes of it


def run(engine: Engine, name: str, walks: Sequence[Walk], stop: Stop) -> list[Record]:
    """Make all walks, as many at a time as the engine has slots; where it is stopped, records end early."""
    waiting, live = list(reversed([Record(walk) for walk in walks])), {}
    records, progress = list(reversed(waiting)), _Progress(name, sum(len(walk.keys) for walk in walks))
    try:
        while (waiting or live) and not stop.asked:
            while waiting and len(live) < len(engine._slots):
                record = waiting.pop()
                engine.open(record.walk.spec)
                live[record.walk.spec.session] = record
            _step(engine, live)
            progress.step(len(live))
            for session in [session for session, record in live.items() if _done(record)]:
                engine.close(session)
                del live[session]
    finally:
        for session in live:
            engine.close(session)
    return [record for record in records if record.chunks]


def _done(record: Record) -> bool:
    return record.ended is not None or record.chunks == len(record.walk.keys)


def _step(engine: Engine, live: Mapping[str, Record]) -> None:
    for session, record in live.items():
        chunk, walk = record.chunks, record.walk
        engine.control(session, Control(chunk, walk.keys[chunk], walk.prompts.get(chunk)))
    made = engine.step()
    for each in made:
        if isinstance(each, Ended):
            live[each.session].ended = each.reason
    _keep(engine, live, [each for each in made if isinstance(each, Chunk)])


@torch.inference_mode()
def _keep(engine: Engine, live: Mapping[str, Record], chunks: Sequence[Chunk]) -> None:
    """Add each chunk's last picture to its record, at both sizes where the walk wants them."""
    if not chunks:
        return
    full = torch.from_numpy(np.stack([chunk.frames[-1] for chunk in chunks])).to(engine.device).movedim(-1, 1)
    reduced = F.avg_pool2d(full.float(), REDUCTION)
    small = reduced.round().byte()
    records = [live[chunk.session] for chunk in chunks]
    before = torch.stack([reduced[i] if r.last is None else r.last for i, r in enumerate(records)])
    differences = (reduced - before).abs().mean((1, 2, 3)) / 255
    for row, (record, chunk) in enumerate(zip(records, chunks, strict=True)):
        if record.last is not None:
            record.changes.append(differences[row])
        record.last = reduced[row]
        if chunk.index in record.walk.small:
            record.small[chunk.index] = small[row].clone()
        if chunk.index in record.walk.full:
            record.full[chunk.index] = full[row].contiguous()
        if chunk.index in record.walk.scenes:
            record.understood[chunk.index] = chunk.scene
        record.chunks = chunk.index + 1


class _Progress:
    """A line now and then: how much is done, how fast, how long it will take."""

    def __init__(self, name: str, total: int):
        self._name, self._total, self._done = name, total, 0
        self._begun = self._reported = time.monotonic()

    def step(self, chunks: int) -> None:
        self._done += chunks
        now = time.monotonic()
        if now - self._reported > REPORT_SECONDS or self._done == self._total:
            self._reported = now
            speed = self._done / (now - self._begun)
            left = (self._total - self._done) / speed
            print(
                f"{self._name}: {self._done} of {self._total} chunks, {speed * FRAMES_PER_LATENT:.0f} frames/s, "
                f"{left:.0f} s left",
                flush=True,
            )
