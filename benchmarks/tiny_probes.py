"""Two small networks that judge pictures: how the camera moved between two, and what one shows.

They learn from the renderer's pictures alone, never from a model's output, with seeds that neither training nor
evaluation uses. N pictures or pairs; pictures are uint8 (N, 3, h, w) at the size of tiny_truth.SMALL.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.tiny_measures import directions, share
from benchmarks.tiny_truth import REPORT_SECONDS, Truth, fingerprint, motion, moved
from pipeline.tiny.clips import OWN_THINGS, PITCH_LIMIT
from pipeline.tiny.landscape import HOURS, PERIOD, PLACES, WEATHERS
from pipeline.tiny.text import KINDS

VERSION = 4
TRAINING_SEED, HELD_OUT_SEED = 2 * 10**6, 2 * 10**6 + 1
POSE_WIDTHS, SCENE_WIDTHS = (32, 48, 96, 128), (32, 64, 128, 192)
REACH = (5, 10)
"""Rows and columns of quarter-size pictures that a spot may have moved: what the quickest turns and tilts do."""
GRID = (3, 5)
"""What is left of a picture's height and width before the last layers."""
FEATURES = 64
HELD_OUT_SHARE = 20
ATTRIBUTES = ("place", "thing", "hour", "weather")
NAMES = {"place": list(PLACES), "hour": list(HOURS), "weather": list(WEATHERS)}
JUDGED_AT_ONCE = 512


@dataclass(frozen=True)
class ProbePlan:
    """How many pairs of pictures to draw, a twentieth as many held out, and how long to learn from them.

    Motion is the harder lesson: what a picture shows takes half of its steps.
    """

    pairs: int = 40_000
    steps: int = 4_000
    batch: int = 256
    rate: float = 2e-3


class Pairs(NamedTuple):
    """before, after: (N, 3, h, w) uint8; motion: (N, 4) of tiny_truth.motion; scenes: (N, 4) int64."""

    before: Tensor
    after: Tensor
    motion: Tensor
    scenes: Tensor


class Residual(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.Sequential(_convolution(width, width, 3), nn.SiLU(), _convolution(width, width, 3))

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x + self.layers(x))


def _stage(narrow: int, wide: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(_convolution(narrow, wide, kernel, stride=2), nn.SiLU(), Residual(wide))


def _convolution(narrow: int, wide: int, kernel: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(narrow, wide, kernel, stride, padding=kernel // 2, bias=False), nn.BatchNorm2d(wide))


class PoseProbe(nn.Module):
    """Two pictures a latent frame apart, (N, 6, h, w), to the motion between them, (N, 4).

    What moved where is asked outright: each spot of the first picture against the spots of the second within REACH.
    """

    def __init__(self):
        super().__init__()
        narrow, spots = POSE_WIDTHS[:2], (2 * REACH[0] + 1) * (2 * REACH[1] + 1)
        self.look = nn.Sequential(_stage(3, narrow[0], 5), _stage(*narrow, 3))
        self.match = nn.Conv2d(narrow[1], narrow[1], 1, bias=False)
        self.mix = nn.Sequential(_convolution(spots + narrow[1], narrow[1], 1), nn.SiLU())
        self.trunk = Trunk(POSE_WIDTHS[1:])
        self.head = nn.Linear(FEATURES, 4)

    def forward(self, pictures: Tensor) -> Tensor:
        before, after = self.look(torch.cat(pictures.chunk(2, dim=1)) - 0.5).chunk(2)
        alike = correlation(*(F.normalize(self.match(seen).float(), dim=1) for seen in (before, after)))
        return self.head(self.trunk(self.mix(torch.cat((alike.to(before.dtype), before), dim=1))))


def correlation(one: Tensor, other: Tensor) -> Tensor:
    """Scalar products of each spot of `one` (N, C, h, w) with those of `other` at most REACH away: (N, spots, h, w).

    Channels are (2 REACH[0] + 1) rows times (2 REACH[1] + 1) columns of displacement, outside the picture 0.
    """
    down, across = REACH
    width = one.shape[-1]
    rows = F.pad(other, (across, across, down, down)).movedim(1, -1)  # (N, h + 2 down, w + 2 across, C)
    place = torch.arange(width, device=one.device)[:, None] + torch.arange(2 * across + 1, device=one.device)
    place = place.expand(*one.shape[:1], one.shape[-2], -1, -1)
    found = []
    for shift in range(2 * down + 1):
        every = one.movedim(1, -1) @ rows[:, shift : shift + one.shape[-2]].mT  # (N, h, w, w + 2 across)
        found.append(every.gather(-1, place))
    return torch.cat(found, dim=-1).movedim(-1, 1)


class SceneProbe(nn.Module):
    """A picture (N, 3, h, w) to logits of place, thing, hour, weather; features() is the space of Frechet distances."""

    def __init__(self):
        super().__init__()
        self.look = _stage(3, SCENE_WIDTHS[0], 5)
        self.trunk = Trunk(SCENE_WIDTHS)
        self.heads = nn.ModuleList(nn.Linear(FEATURES, kinds) for kinds in KINDS)

    def features(self, pictures: Tensor) -> Tensor:
        return self.trunk(self.look(pictures - 0.5))

    def forward(self, pictures: Tensor) -> list[Tensor]:
        features = self.features(pictures)
        return [head(features) for head in self.heads]


class Trunk(nn.Module):
    """Maps (N, widths[0], h, w) to FEATURES numbers, half the height and width at each of the further widths."""

    def __init__(self, widths: Sequence[int]):
        super().__init__()
        self.stages = nn.Sequential(*(_stage(narrow, wide, 3) for narrow, wide in pairwise(widths)))
        self.last = nn.Linear(widths[-1] * GRID[0] * GRID[1], FEATURES)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.last(F.adaptive_avg_pool2d(self.stages(x), GRID).flatten(1)))


@dataclass(frozen=True)
class Probes:
    """Both, trained, and what they reached on held-out pictures of the renderer."""

    pose: PoseProbe
    scene: SceneProbe
    device: torch.device
    held_out: dict[str, Any]

    def motion(self, before: Tensor, after: Tensor) -> Tensor:
        """(N, 4) as tiny_truth.motion, on the CPU."""
        return self._judge(lambda b, a: self.pose(torch.cat((b, a), dim=1)), before, after)

    def scenes(self, pictures: Tensor) -> Tensor:
        """(N, 4) indexes, on the CPU."""
        return self._judge(lambda x: torch.stack([each.argmax(1) for each in self.scene(x)], dim=1), pictures)

    def features(self, pictures: Tensor) -> Tensor:
        """(N, FEATURES), on the CPU."""
        return self._judge(self.scene.features, pictures)

    @torch.inference_mode()
    def _judge(self, probe: Callable[..., Tensor], *pictures: Tensor) -> Tensor:
        parts = [
            probe(*(_prepared(each[first : first + JUDGED_AT_ONCE], self.device) for each in pictures))
            for first in range(0, len(pictures[0]), JUDGED_AT_ONCE)
        ]
        return torch.cat(parts).cpu()


def _prepared(pictures: Tensor, device: torch.device) -> Tensor:
    return pictures.to(device).float().div(255).contiguous(memory_format=torch.channels_last)


# Pictures to learn from


def draw_pairs(truth: Truth, count: int, seed: int, keys_only: bool = False) -> Pairs:
    """Random places, scenes and motions between two pictures; `keys_only` leaves motions that keys cannot make out."""
    generator = torch.Generator().manual_seed(seed)
    before = torch.rand(count, 4, generator=generator, dtype=torch.float64)
    before = before * torch.tensor([PERIOD, PERIOD, 2 * torch.pi, 2 * PITCH_LIMIT], dtype=torch.float64)
    level = torch.rand(count, generator=generator) < 0.5
    before[:, 3] = torch.where(level, 0.0, before[:, 3] - PITCH_LIMIT)
    after = moved(before, _random_motions(count, generator, keys_only).double())
    after[:, 3] = after[:, 3].clamp(-PITCH_LIMIT, PITCH_LIMIT)
    scenes = random_scenes(count, generator)
    pictures = (truth.small(poses, scenes) for poses in (before, after))
    return Pairs(*pictures, motion(before, after).float().to(truth.device), scenes.to(truth.device))


def random_scenes(count: int, generator: torch.Generator) -> Tensor:
    """(N, 4): every place, hour and weather as often, its own things as often as in training."""
    columns = [torch.randint(kinds, (count,), generator=generator) for kinds in KINDS]
    columns[1] = torch.where(torch.rand(count, generator=generator) < OWN_THINGS, 0, columns[1])
    return torch.stack(columns, dim=1)


def _random_motions(count: int, generator: torch.Generator, keys_only: bool) -> Tensor:
    """A third of each axis at rest; the rest as a key moves it, or (unless `keys_only`) by any amount."""
    keys = torch.randint(-1, 2, (count, 4), generator=generator).float()
    diagonal = keys[:, :2].abs().sum(1) == 2
    keys[:, :2] = torch.where(diagonal[:, None], keys[:, :2] / 2**0.5, keys[:, :2])
    if keys_only:
        return keys
    scale = 1.4 * torch.rand(count, 4, generator=generator)
    return torch.where(torch.rand(count, 1, generator=generator) < 0.5, keys, keys.sign() * scale)


def _batches(pairs: Pairs, size: int, seed: int) -> Iterator[Pairs]:
    """Without end: any order, mirrored, or run backwards, each half of the time."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        chosen = torch.randint(len(pairs.motion), (size,), generator=generator).to(pairs.motion.device)
        mirrored, backwards = (torch.rand(2, generator=generator) < 0.5).tolist()
        before, after, moves, scenes = (part[chosen] for part in pairs)
        if backwards:
            before, after, moves = after, before, -moves
        if mirrored:
            before, after = before.flip(-1), after.flip(-1)
            moves = moves * moves.new_tensor([1, -1, -1, 1])
        yield Pairs(before, after, moves, scenes)


def _disturbed(pictures: Tensor, softest: int) -> Tensor:
    """uint8 to [0, 1], half of the batches grainy and soft, as if made `softest` times smaller at most.

    Any video is a little so; it is no model's own fault that is learnt here.
    """
    x = pictures.float().div(255)
    if torch.rand(()) < 0.5:
        factor = 2 ** int(torch.randint(1, softest.bit_length(), ()))
        soft = F.interpolate(F.avg_pool2d(x, factor), size=x.shape[-2:], mode="bilinear", align_corners=False)
        x = torch.lerp(x, soft, float(torch.rand(())))
        x = x + 0.03 * float(torch.rand(())) * torch.randn_like(x)
    return x.contiguous(memory_format=torch.channels_last)


# Learning


def _pose_loss(probe: PoseProbe, batch: Pairs) -> Tensor:
    """Motion is to be seen in soft pictures too."""
    pictures = _disturbed(torch.cat((batch.before, batch.after), dim=1), softest=8)
    return F.smooth_l1_loss(probe(pictures).float(), batch.motion, beta=0.1)


def _scene_loss(probe: SceneProbe, batch: Pairs) -> Tensor:
    """Soft pictures are to be another thing in the space of Frechet distances."""
    guesses = probe(_disturbed(batch.before, softest=2))
    return sum(F.cross_entropy(guess.float(), batch.scenes[:, i]) for i, guess in enumerate(guesses))


def _train(name: str, probe: nn.Module, loss_of: Callable, pairs: Pairs, plan: ProbePlan) -> nn.Module:
    device = pairs.motion.device
    probe = probe.to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(probe.parameters(), plan.rate, weight_decay=0.02, fused=device.type == "cuda")
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, plan.rate, total_steps=plan.steps + 1, pct_start=0.15)
    reported = time.monotonic()
    for step, batch in zip(
        range(plan.steps), _batches(pairs, min(plan.batch, len(pairs.motion)), TRAINING_SEED), strict=False
    ):
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = loss_of(probe, batch)
        loss.backward()
        optimizer.step()
        schedule.step()
        if time.monotonic() - reported > REPORT_SECONDS:
            reported = time.monotonic()
            print(f"{name} probe: step {step + 1} of {plan.steps}, loss {loss.item():.3f}", flush=True)
    return probe.eval().requires_grad_(False)


def train_probes(truth: Truth, plan: ProbePlan) -> Probes:
    """Draw, learn, measure on held-out pictures."""
    begun = time.monotonic()
    torch.manual_seed(TRAINING_SEED)
    pairs = draw_pairs(truth, plan.pairs, TRAINING_SEED)
    drawn = time.monotonic() - begun
    print(f"probes: {plan.pairs} pairs of pictures drawn in {drawn:.0f} s", flush=True)
    pose = _train("pose", PoseProbe(), _pose_loss, pairs, plan)
    scene = _train("scene", SceneProbe(), _scene_loss, pairs, replace(plan, steps=max(1, plan.steps // 2)))
    probes = Probes(pose, scene, truth.device, {})
    facts = held_out(probes, draw_pairs(truth, max(1, plan.pairs // HELD_OUT_SHARE), HELD_OUT_SEED, True))
    seconds = {"draw_seconds": round(drawn, 1), "seconds": round(time.monotonic() - begun, 1)}
    return Probes(pose, scene, truth.device, facts | seconds | asdict(plan))


def held_out(probes: Probes, pairs: Pairs) -> dict[str, Any]:
    """Shares of right answers: directions where there is a motion, rest where there is none, scenes, class by class."""
    seen, true = probes.motion(pairs.before, pairs.after), pairs.motion.cpu()
    guessed, scenes = probes.scenes(pairs.before), pairs.scenes.cpu()
    right = directions(seen) == directions(true)
    moving = directions(true) != 0
    walking, turning = moving[:, :2], moving[:, 2]
    weather = scenes[:, 3]
    return {
        "turn": share(right[:, 2][turning]),
        "walk": share(right[:, :2][walking]),
        "tilt": share(right[:, 3][moving[:, 3]]),
        "rest": share(right[~moving]),
        "walk_by_weather": {
            name: share(right[:, :2][walking & (weather == i)[:, None]]) for i, name in enumerate(WEATHERS)
        },
        **{name: share(guessed[:, i] == scenes[:, i]) for i, name in enumerate(ATTRIBUTES)},
        "by_class": by_class(guessed, scenes),
    }


def by_class(guessed: Tensor, scenes: Tensor) -> dict[str, dict[str, float | None]]:
    """Of each place, hour and weather, how many were seen as what they are."""
    right = guessed == scenes
    return {
        name: {kind: share(right[:, at][scenes[:, at] == i]) for i, kind in enumerate(NAMES[name])}
        for at, name in enumerate(ATTRIBUTES)
        if name in NAMES
    }


# Kept for the next run


def find_probes(folder: Path, truth: Truth, plan: ProbePlan) -> Probes:
    """Those in `folder` where they were made of this renderer's pictures by this plan, else new ones, kept there."""
    path, made_of = folder / "probes.pt", {"renderer": fingerprint(), "version": VERSION, **asdict(plan)}
    if path.is_file():
        state = torch.load(path, map_location=truth.device, weights_only=True)
        if state["made_of"] == made_of:
            return _loaded(state, truth.device)
        print(f"{path} was made of other pictures or by another plan; it is made anew", flush=True)
    probes = train_probes(truth, plan)
    folder.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    states = {"pose": probes.pose.state_dict(), "scene": probes.scene.state_dict()}
    torch.save({"made_of": made_of, "held_out": json.dumps(probes.held_out), **states}, part)
    part.replace(path)
    return probes


def _loaded(state: dict[str, Any], device: torch.device) -> Probes:
    probes = []
    for kind, name in ((PoseProbe, "pose"), (SceneProbe, "scene")):
        probe = kind().to(device, memory_format=torch.channels_last)
        probe.load_state_dict(state[name])
        probes.append(probe.eval().requires_grad_(False))
    return Probes(*probes, device, json.loads(state["held_out"]))
