"""The third part: the transformer and the decoder together, on pictures.

A regression of latents gives soft pictures: an edge that may stand here or there ends up half in both places. The world
is a function of pose and scene, so each picture that the model makes of its own past has its true one: both learn to
get there, by a loss to which a slope in an edge's place is no middle way (picture_loss).

B clips, N latent frames (chunks) a clip.
"""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.tiny.clips import ClipMaker
from pipeline.tiny.muon import matrices_of
from pipeline.tiny.plan import HELD_OUT_SEED, Plan
from pipeline.tiny.shots import Shots
from pipeline.tiny.train_transformer import Objective, compile_blocks
from pipeline.tiny.train_vae import as_pictures, decode_stream, encode_clips, picture_loss, psnr
from pipeline.tiny.trainee import Graphed, Progress, Stop, Trainee, update_together
from pipeline.tiny.vae import TinyVAE

LATENT_SHARE = 0.1
"""Weight of the latents' squared error: what the model remembers must stay what the encoder would say."""
EDGE_SHARE = 12.0
"""What missing edges cost here: more than in the VAE, for where a thing stands is often in doubt by a pixel or two."""
PAST_DREAMS = 2
"""So deep is the past what the model made of it."""
SHOTS_SEED = 1
FRESH_SEED, STEPS_A_REFRESH = 10**5, 32
"""After so many steps some clips are new, or the transformer would know them by heart."""
TRUE_SHARE = 3
"""One clip of so many, rounded down, is decoded from its true latents: somebody's picture must be shown as it is."""


class Learners(NamedTuple):
    """What learns: the Objective's transformer and words, and the decoder."""

    objective: Trainee
    decoder: Trainee


class Lesson:
    """One step of both learners."""

    def __init__(self, vae: TinyVAE, learners: Learners):
        self._vae, self._learners = vae, learners

    def __call__(self, pixels: Tensor, pose: Tensor, scenes: Tensor) -> Tensor:
        """pixels (B, N, 3, 4, H, W) uint8. Returns the loss."""
        objective, decoder = self._learners
        pictures = as_pictures(pixels)
        with torch.no_grad():
            true = encode_clips(self._vae, pictures)
        latents = _made(objective.module, true, pose, scenes)
        made = self._decoded(torch.cat((true[: len(true) // TRUE_SHARE], latents[len(true) // TRUE_SHARE :])))
        loss = picture_loss(made, pictures, EDGE_SHARE) + LATENT_SHARE * (latents - true).square().mean()
        update_together(loss, objective, decoder)
        return loss.detach()

    def _decoded(self, latents: Tensor) -> Tensor:
        with torch.autocast(latents.device.type, torch.bfloat16, enabled=latents.is_cuda):
            return decode_stream(self._vae, self._vae.denormalize(latents))


def _made(objective: Objective, true: Tensor, pose: Tensor, scenes: Tensor) -> Tensor:
    """What the transformer makes of a past of its own, (B, N, C, h, w) as `true`."""
    terms = objective.terms_twice(pose, scenes)
    history = torch.ones(len(true), dtype=torch.bool, device=true.device)
    return objective.make(objective.past(true, terms, history, PAST_DREAMS), terms, history)


def train_jointly(
    vae: TinyVAE, objective: Objective, plan: Plan, folder: Path, device: torch.device, stop: Stop
) -> dict[str, float]:
    """Fill `objective` and `vae`'s decoder with the moving averages of their joint training."""
    compile_blocks(objective)
    decoder = vae.decode_latent
    for part in (objective, decoder):
        part.requires_grad_(True)
    learners = Learners(  # the transformer has come furthest by then
        Trainee(objective, plan.joint_rate / 2, folder / "joint-objective.pt", matrices=objective.matrices),
        Trainee(decoder, plan.joint_rate, folder / "joint-decoder.pt", matrices=matrices_of(decoder)),
    )
    progress = Progress("joint", plan.joint_minutes, stop, *learners)
    if progress.goes_on:
        print(f"joint: before {measured(vae, objective, plan, device)}", flush=True)
        _train(Lesson(vae, learners), learners, progress, plan, device)
        progress.save()
    objective.load_state_dict(learners.objective.average.state_dict())
    vae.decode_latent.load_state_dict(learners.decoder.average.state_dict())
    for part in (vae, objective):
        part.requires_grad_(False)
    after = measured(vae, objective, plan, device)
    print(f"joint: after {after}", flush=True)
    return after | {"joint_steps": learners.decoder.steps, "joint_minutes": progress.elapsed}


def _train(lesson: Lesson, learners: Learners, progress: Progress, plan: Plan, device: torch.device) -> None:
    shots, steps = Shots.drawn(plan.shots, SHOTS_SEED, plan, device), learners.decoder.steps
    order, maker = torch.Generator().manual_seed(steps), ClipMaker(FRESH_SEED + steps, device, plan.coarseness)
    learn = Graphed(lesson, *shots.some(plan.joint_batch, order))
    while progress.goes_on:
        for learner in learners:
            learner.prepare(progress.share)
        progress.step(learn(*shots.some(plan.joint_batch, order)))
        if progress.steps % STEPS_A_REFRESH == 0:
            shots.renew(maker, plan)


@torch.no_grad()
def measured(vae: TinyVAE, objective: Objective, plan: Plan, device: torch.device) -> dict[str, float]:
    """Of held-out clips made after a past of the model's own: decibels, and the gradients' size and energy in parts of
    the truth's."""
    shots = Shots.drawn(plan.held_out, HELD_OUT_SEED + 3, plan, device)
    sums = torch.zeros(3)
    for at in range(0, len(shots.pose), plan.joint_batch):
        part = slice(at, at + plan.joint_batch)
        pictures = as_pictures(shots.pictures[part])
        true = encode_clips(vae, pictures)
        history = torch.ones(len(true), dtype=torch.bool, device=device)
        made = objective.dream(
            true, objective.terms_twice(shots.pose[part], shots.scenes[part]), history, PAST_DREAMS + 1
        )
        shown = decode_stream(vae, vae.denormalize(made)).clamp(-1, 1)
        decibels = torch.stack([psnr(*pair) for pair in zip(shown, pictures, strict=True)]).mean()
        ratios = [_slopes(shown, power) / _slopes(pictures, power) for power in (1, 2)]
        sums += len(pictures) * torch.tensor([decibels, *ratios])
    means = (sums / len(shots.pose)).tolist()
    return dict(zip(("psnr_made", "gradients_made", "gradient_energy_made"), means, strict=True))


def _slopes(pictures: Tensor, power: int) -> Tensor:
    """Mean difference of neighbouring pixels, to a power."""
    return sum(pictures.diff(dim=dim).abs().pow(power).mean() for dim in (-1, -2))
