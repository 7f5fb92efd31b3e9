"""The second part: the transformer and the text table, on latents of drawn clips.

The preset makes a chunk in few steps and predicts the chunk itself ("sample"): the flow would have the narrow model
carry the noise through all its layers, to be subtracted again at their end.

B clips, N latent frames (chunks) a clip.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.camera import intrinsics_from_view, live_motion, plucker_map, ray_directions
from pipeline.presets import Preset, find_preset
from pipeline.sampler import TRAINING_STEPS
from pipeline.tiny.clips import FADE_LATENTS, ClipMaker
from pipeline.tiny.drawer import Drawer, Drawn, draw, drawing
from pipeline.tiny.load import TinyWorld
from pipeline.tiny.muon import matrices_of
from pipeline.tiny.plan import HELD_OUT_SEED, Plan
from pipeline.tiny.teacher_forcing import STREAMS, alone, teacher_forcing
from pipeline.tiny.train_vae import decode_clip, encode_clip, psnr
from pipeline.tiny.trainee import Graphed, Progress, Stop, Trainee, forget
from pipeline.tiny.vae import TinyVAE
from pipeline.transformer import CameraTerms, TextTerms

WITHOUT_HISTORY = 0.15
"""Share of the clips that are made from pose and prompt alone, so that the model does not lean on its past."""
FOREIGN_START = 0.1
"""Share that begins with another clip's latent frame, as a session does that begins with somebody's picture."""
DREAMS = (0, 1, 0, 1, 2)
"""How often, step by step, the past is replaced by what the model makes of it."""
TRUE_PAST = 0.1
"""Share of the time with a past in which it is not."""


@dataclass
class Pool:
    """Latents (P, N, C, h, w) float16 of drawn clips, their pose and scenes; the oldest make room for the newest."""

    latents: Tensor
    pose: Tensor
    scenes: Tensor
    filled: int = 0
    next: int = 0
    added: int = 0

    @classmethod
    def empty(cls, clips: int, chunks: int, preset: Preset, device: torch.device) -> "Pool":
        channels, _, h, w = preset.latent_shape
        return cls(
            torch.empty(clips, chunks, channels, h, w, dtype=torch.float16, device=device),
            torch.empty(clips, chunks, 2, 4, dtype=torch.float64, device=device),
            torch.empty(clips, chunks, 4, dtype=torch.int64, device=device),
        )

    def add(self, drawn: Drawn) -> None:
        count = len(drawn.pose)
        if self.next + count > len(self.pose):
            self.next = 0
        at = slice(self.next, self.next + count)
        self.latents[at], self.pose[at], self.scenes[at] = drawn
        self.next += count
        self.filled = max(self.filled, self.next)
        self.added += count

    def save(self, path: Path) -> None:
        """What is drawn is half the training's wealth: a run that goes on does not begin with a few clips."""
        part = path.with_suffix(".part")
        full = slice(0, self.filled)
        clips = {"latents": self.latents[full], "pose": self.pose[full], "scenes": self.scenes[full]}
        torch.save(clips | {"added": self.added}, part)
        part.replace(path)

    def load(self, path: Path) -> None:
        state = torch.load(path, map_location=self.pose.device, weights_only=True)
        self.added = state.pop("added", len(state["pose"]))
        self.filled = min(len(self.pose), len(state["pose"]))
        self.next = self.filled
        for name, value in state.items():
            getattr(self, name)[: self.filled] = value[: self.filled]


class Objective(nn.Module):
    """The transformer and the text table as they are trained; the loss of a batch of clips."""

    def __init__(self, world: TinyWorld, preset: Preset):
        super().__init__()
        assert preset.prediction == "sample", f"the loss is that of the chunk itself, not of its {preset.prediction}"
        self.transformer, self.text = world.transformer, world.text
        self.window, self.grid = preset.window, preset.token_grid
        self.sigmas = [step.sigma for step in preset.steps]
        self.register_buffer("levels", torch.tensor(self.sigmas), persistent=False)
        _, _, h, w = preset.latent_shape
        view = intrinsics_from_view(preset.field_of_view, 8 * h, 8 * w)
        self.register_buffer("directions", ray_directions(view, 8 * h, 8 * w), persistent=False)

    @property
    def matrices(self) -> list[nn.Parameter]:
        """Of the transformer's blocks."""
        return matrices_of(self.transformer.blocks)

    def loss(self, latents: Tensor, pose: Tensor, scenes: Tensor, dreams: int) -> Tensor:
        """Mean squared error of the chunks; the past is what the model made of it, `dreams` deep.

        latents: (B, N, C, h, w); pose: (B, N, 2, 4); scenes: (B, N, 4).
        """
        terms = self.terms_twice(pose, scenes)
        history = torch.rand(len(latents), device=latents.device) > WITHOUT_HISTORY
        sigma, noisy = self.noised(latents)
        made = self.predict(self.past(latents, terms, history, dreams), noisy, sigma, terms, history)
        return (made - latents).square().mean()

    def loss_alone(self, latents: Tensor, pose: Tensor, scenes: Tensor) -> Tensor:
        """The same without any past. A picture in which a new prompt fades in is none of pose and prompt alone."""
        sigma, noisy = self.noised(latents)
        noisy = noisy.flatten(0, 1).unsqueeze(2)
        times = self.transformer.embed_time(TRAINING_STEPS * sigma.flatten())
        memory = alone(len(noisy), self.grid, self.transformer.config.head_width, latents.device)
        with torch.autocast(latents.device.type, torch.bfloat16, enabled=latents.is_cuda):
            made = self.transformer(noisy, times, *self.terms(pose, scenes), memory)
        error = (made.squeeze(2).float() - latents.flatten(0, 1)).square().mean((1, 2, 3))
        steady = _steady(scenes).flatten()
        return (error * steady).sum() / steady.sum().clamp(min=1)

    @torch.no_grad()
    def past(self, latents: Tensor, terms: tuple, history: Tensor, dreams: int) -> Tensor:
        """A past as a stream has it: what the model made, `dreams` deep, a little noisy, some with a foreign start."""
        return _with_context_noise(_with_foreign_start(self.dream(latents, terms, history, dreams)))

    def noised(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """A level of noise for each chunk, drawn from the preset's, (B, N), and the chunks at it."""
        index = torch.randint(len(self.sigmas), latents.shape[:2], device=latents.device)
        sigma = self.levels[index]
        return sigma, torch.lerp(latents, torch.randn_like(latents), sigma[:, :, None, None, None])

    @torch.no_grad()
    def dream(self, latents: Tensor, terms: tuple, history: Tensor, times: int = 1) -> Tensor:
        """What the model makes of each chunk after the past given, the whole once more `times` times."""
        for _ in range(times):
            latents = self.make(latents, terms, history)
        return latents

    def make(self, past: Tensor, terms: tuple, history: Tensor) -> Tensor:
        """Each chunk as the engine would make it, in all its steps, after `past` (B, N, C, h, w)."""
        made = None
        for level in self.sigmas:
            noise = torch.randn_like(past)
            noisy = noise if made is None else torch.lerp(made.detach(), noise, level)
            made = self.predict(past, noisy, torch.full_like(past[:, :, 0, 0, 0], level), terms, history)
        return made

    def predict(self, clean: Tensor, noisy: Tensor, sigma: Tensor, terms: tuple, history: Tensor) -> Tensor:
        """The noisy stream's chunks, (B, N, C, h, w) float32."""
        chunks = clean.shape[1]
        memory = teacher_forcing(history, chunks, self.window, self.grid, self.transformer.config.head_width)
        both = torch.stack((clean, noisy)).flatten(0, 2).unsqueeze(2)
        times = torch.stack((torch.zeros_like(sigma), TRAINING_STEPS * sigma)).flatten()
        time_of = self.transformer.embed_time(times)
        with torch.autocast(clean.device.type, torch.bfloat16, enabled=clean.is_cuda):
            made = self.transformer(both, time_of, *terms, memory)
        return made.squeeze(2).unflatten(0, (STREAMS, *sigma.shape))[1].float()

    def terms_twice(self, pose: Tensor, scenes: Tensor) -> tuple[list[TextTerms], list[CameraTerms]]:
        """Text and camera of all chunks, the same for both streams."""
        text, camera = self.terms(pose, scenes)
        return _twice(text, TextTerms), _twice(camera, CameraTerms)

    def terms(self, pose: Tensor, scenes: Tensor) -> tuple[list[TextTerms], list[CameraTerms]]:
        """Text and camera of all chunks, a row each."""
        with torch.autocast(pose.device.type, torch.bfloat16, enabled=pose.is_cuda):
            text = self.transformer.embed_text(self.text(scenes.flatten(0, 1)))
            motion = live_motion(pose.flatten(0, 1).unsqueeze(1)).float()
            plucker = plucker_map(motion, self.directions.float())
            return text, self.transformer.embed_camera(plucker, pose.flatten(0, 1).unsqueeze(1))


def _twice(terms: list, kind: Callable) -> list:
    return [kind(*(torch.cat((part, part)) for part in layer)) for layer in terms]


def _steady(scenes: Tensor) -> Tensor:
    """(B, N, 4) to (B, N) float32: 0 where the prompt has just changed and its picture still fades in."""
    changes = F.pad((scenes[:, 1:] != scenes[:, :-1]).any(-1), (1, 0))
    fading = changes
    for later in range(1, FADE_LATENTS):
        fading = fading | F.pad(changes[:, :-later], (later, 0))
    return (~fading).float()


def _with_context_noise(clean: Tensor) -> Tensor:
    """A stream's own past is never quite clean: up to 12% noise on 70% of the chunks."""
    shape = (*clean.shape[:2], 1, 1, 1)
    level = 0.12 * torch.rand(shape, device=clean.device) * (torch.rand(shape, device=clean.device) < 0.7)
    return torch.lerp(clean, torch.randn_like(clean), level)


def _with_foreign_start(clean: Tensor) -> Tensor:
    foreign = (torch.rand(len(clean), device=clean.device) < FOREIGN_START)[:, None, None, None]
    first = torch.where(foreign, clean[:, 0].roll(1, 0), clean[:, 0])
    return torch.cat((first[:, None], clean[:, 1:]), dim=1)


def train_transformer(
    world: TinyWorld, plan: Plan, folder: Path, device: torch.device, stop: Stop, draw_device: str | None = None
) -> tuple[TinyWorld, dict[str, float]]:
    """Returns the world with the moving averages in place, and what they reach on held-out clips."""
    preset = find_preset("tiny")
    objective = Objective(world, preset).to(device)
    compile_blocks(objective)
    trainee = Trainee(objective, plan.rate, folder / "transformer.pt", matrices=objective.matrices)
    progress = Progress("transformer", plan.minutes, stop, trainee)
    pool = Pool.empty(plan.pool, plan.chunks, preset, device)
    if progress.goes_on:
        if (folder / "pool.pt").exists():
            pool.load(folder / "pool.pt")
        forget(folder, "joint-*.pt")  # which began with another one
        _train(trainee, progress, pool, plan, world.vae, draw_device)
        progress.save()
        pool.save(folder / "pool.pt")
    best = trainee.average
    held_out = measured(best, world.vae, plan, device)
    print(f"transformer: held out {held_out}", flush=True)
    facts = {"transformer_steps": trainee.steps, "transformer_minutes": progress.elapsed}
    facts |= {"clips_drawn": pool.added} if pool.added else {}  # by an earlier run, if this one had nothing to do
    return world._replace(transformer=best.transformer, text=best.text), held_out | facts


def compile_blocks(objective: Objective) -> None:
    """On a GPU. One compilation serves all blocks: they differ in weights alone."""
    if objective.levels.is_cuda:
        for block in objective.transformer.blocks:
            block.compile(dynamic=False)


def _train(trainee: Trainee, progress: Progress, pool: Pool, plan: Plan, vae: TinyVAE, draw_device: str | None) -> None:
    seed = 2 + 2 * trainee.steps
    here = _drawn_here(vae, plan, seed, pool.pose.device, pool)
    if draw_device is None:
        _train_on(trainee, progress, plan, _batches(pool, plan, here, seed))
        return
    with drawing(draw_device, vae, seed + 1, plan) as drawer:
        _train_on(trainee, progress, plan, _batches(pool, plan, _drawn_there(drawer, here, plan, pool), seed))


def _train_on(trainee: Trainee, progress: Progress, plan: Plan, batches: Iterator[tuple[Tensor, ...]]) -> None:
    learners: dict[int | None, Graphed] = {}
    while progress.goes_on:
        batch = next(batches)
        dreams = _dreams(progress, plan.alone_share)
        if dreams not in learners:
            trainee.hold()
            learners[dreams] = Graphed(_learner(trainee, dreams), *batch)
        trainee.prepare(progress.share)
        progress.step(learners[dreams](*batch))


def _dreams(progress: Progress, alone_share: float) -> int | None:
    """How often the step's past is dreamt; None for a step without a past."""
    if progress.share < alone_share:
        return None
    dreaming = progress.share > alone_share + TRUE_PAST * (1 - alone_share)
    return DREAMS[progress.steps % len(DREAMS)] if dreaming else 0


def _learner(trainee: Trainee, dreams: int | None) -> Callable[..., Tensor]:
    def learn(latents: Tensor, pose: Tensor, scenes: Tensor) -> Tensor:
        objective = trainee.module
        clips = (latents, pose, scenes)
        loss = objective.loss_alone(*clips) if dreams is None else objective.loss(*clips, dreams)
        trainee.update(loss)
        return loss.detach()

    return learn


def _batches(pool: Pool, plan: Plan, source: Iterator[Drawn | None], seed: int) -> Iterator[tuple[Tensor, ...]]:
    """Random clips of the pool for ever, which takes what `source` has for it."""
    order = torch.Generator().manual_seed(seed)
    while True:
        if (drawn := next(source)) is not None:
            pool.add(drawn)
        elif pool.filled >= plan.first_pool:
            chosen = torch.randint(pool.filled, (plan.batch,), generator=order).to(pool.pose.device)
            yield pool.latents[chosen].float(), pool.pose[chosen], pool.scenes[chosen]


def _drawn_here(vae: TinyVAE, plan: Plan, seed: int, device: torch.device, pool: Pool) -> Iterator[Drawn | None]:
    """A batch of clips as long as the pool is small and in a share of the time; None otherwise."""
    maker = ClipMaker(seed, device, plan.coarseness)
    begun, drawing = time.monotonic(), 0.0
    while True:
        if pool.filled >= plan.first_pool and drawing >= plan.draw_share * (time.monotonic() - begun):
            yield None
            continue
        _wait(device)  # for the steps that are queued: their time is not drawing's
        at = time.monotonic()
        drawn = draw(maker, vae, plan)
        _wait(device)
        drawing += time.monotonic() - at
        yield drawn


def _drawn_there(drawer: Drawer, here: Iterator[Drawn | None], plan: Plan, pool: Pool) -> Iterator[Drawn | None]:
    """The first clips are drawn here, while the other process gets ready; then what it has, or None."""
    while pool.filled < plan.first_pool:
        yield next(here)
    while True:
        yield drawer.take()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


@torch.no_grad()
def measured(objective: Objective, vae: TinyVAE, plan: Plan, device: torch.device) -> dict[str, float]:
    """Squared error of the latents and decibels of the pictures, after no history, a true one, and the model's own."""
    clips = ClipMaker(HELD_OUT_SEED + 1, device, plan.coarseness).make(plan.held_out, plan.chunks)
    latents = torch.stack([encode_clip(vae, pictures) for pictures in clips.pictures])
    terms = objective.terms_twice(clips.pose, clips.scenes)
    result = {}
    for name, past, dreams in (("without_history", False, 0), ("with_history", True, 0), ("with_own_history", True, 3)):
        history = torch.full((len(latents),), past, device=device)
        made = objective.make(objective.dream(latents, terms, history, dreams), terms, history)
        result[f"held_out_error_{name}"] = float((made - latents).square().mean())
        pairs = zip(made, clips.pictures, strict=True)
        result[f"psnr_{name}"] = float(torch.stack([psnr(decode_clip(vae, m), p) for m, p in pairs]).mean())
    return result
