"""The third part: the decoder once more, on what the transformer makes, with a critic.

A regression gives soft pictures. The world is a function of pose and scene, so each picture that the model makes of its
own past has its true one: the decoder learns to get there, and a critic that compares patches keeps it crisp.

B clips, N latent frames (chunks) a clip.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.tiny.plan import HELD_OUT_SEED, Plan
from pipeline.tiny.shots import Shots
from pipeline.tiny.train_transformer import Objective
from pipeline.tiny.train_vae import as_pictures, decode_stream, encode_clips, picture_loss, psnr
from pipeline.tiny.trainee import Graphed, Progress, Stop, Trainee
from pipeline.tiny.vae import FRAMES, GROUPS, TinyVAE

CRITIC_WIDTHS = (48, 96, 192, 192)
CRITIC_ALONE = 0.1
"""Share of the time in which the critic learns and is not listened to."""
CRITIC_SHARE = 0.5
"""Length of the critic's gradient at the decoder's last layer, in lengths of the picture loss's."""
DREAMS = 2
TRUE_SHARE = 3
"""One clip of so many is decoded from its true latents: somebody's picture must be shown as it is."""


class Critic(nn.Module):
    """Four pictures as 12 channels (B, 12, H, W) to a map of how true each patch looks."""

    def __init__(self):
        super().__init__()
        layers: list[nn.Module] = []
        before = 3 * FRAMES
        for index, width in enumerate(CRITIC_WIDTHS):
            layers += [nn.Conv2d(before, width, 4, stride=2, padding=1)]
            layers += [nn.GroupNorm(GROUPS, width)] if index else []
            layers += [nn.LeakyReLU(0.2)]
            before = width
        self.layers = nn.Sequential(*layers, nn.Conv2d(before, 1, 3, padding=1))

    def forward(self, pictures: Tensor) -> Tensor:
        return self.layers(pictures)


class Lesson:
    """One step of decoder and critic."""

    def __init__(self, vae: TinyVAE, objective: Objective, decoder: Trainee, critic: Trainee):
        self._vae, self._objective = vae, objective
        self._decoder, self._critic = decoder, critic

    def __call__(self, pixels: Tensor, pose: Tensor, scenes: Tensor, strength: Tensor) -> Tensor:
        """pixels (B, N, 3, 4, H, W) uint8; strength: 0-dim, how much of the critic counts. Returns the picture loss."""
        pictures = as_pictures(pixels)
        made = self._decoded(self._latents(pictures, pose, scenes))
        loss = picture_loss(made, pictures)
        true, false = (_as_channels(part) for part in (pictures, made))
        appeal = -self._judge(false).mean()
        last = self._vae.decode_latent.refine.weight
        lengths = [torch.autograd.grad(part, last, retain_graph=True)[0].norm() for part in (loss, appeal)]
        weight = (CRITIC_SHARE * lengths[0] / (lengths[1] + 1e-6)).clamp(max=10.0).detach() * strength
        self._decoder.update(loss + weight * appeal)
        self._critic.update(F.relu(1 - self._judge(true)).mean() + F.relu(1 + self._judge(false.detach())).mean())
        return loss.detach()

    @torch.no_grad()
    def _latents(self, pictures: Tensor, pose: Tensor, scenes: Tensor) -> Tensor:
        """What the transformer makes after a past of its own; true latents for the first clips."""
        true = encode_clips(self._vae, pictures)
        terms = self._objective.terms_twice(pose, scenes)
        history = torch.ones(len(true), dtype=torch.bool, device=true.device)
        made = self._objective.dream(true, terms, history, DREAMS + 1)
        return torch.cat((true[: len(true) // TRUE_SHARE], made[len(true) // TRUE_SHARE :]))

    def _decoded(self, latents: Tensor) -> Tensor:
        with torch.autocast(latents.device.type, torch.bfloat16, enabled=latents.is_cuda):
            return decode_stream(self._vae, self._vae.denormalize(latents))

    def _judge(self, pictures: Tensor) -> Tensor:
        with torch.autocast(pictures.device.type, torch.bfloat16, enabled=pictures.is_cuda):
            return self._critic.module(pictures).float()


def _as_channels(pictures: Tensor) -> Tensor:
    """(B, N, 3, 4, H, W) to (B*N, 12, H, W)."""
    return pictures.flatten(0, 1).flatten(1, 2).contiguous(memory_format=torch.channels_last)


def train_decoder(
    vae: TinyVAE, objective: Objective, shots: Shots, plan: Plan, folder: Path, stop: Stop
) -> dict[str, float]:
    """Fill `vae`'s decoder with the moving average of its second training."""
    device = shots.pose.device
    vae.decode_latent.requires_grad_(True)
    decoder = Trainee(vae.decode_latent, plan.decoder_rate, folder / "decoder.pt", betas=(0.5, 0.95))
    judge = Critic().to(device, memory_format=torch.channels_last)
    critic = Trainee(judge, plan.decoder_rate, folder / "critic.pt", betas=(0.5, 0.95))
    progress = Progress("decoder", plan.decoder_minutes, decoder.spent, stop)
    if progress.goes_on:
        before = measured(vae, objective, plan, device)
        print(f"decoder: before {before}", flush=True)
        _train_decoder(Lesson(vae, objective, decoder, critic), decoder, critic, progress, shots, plan)
        decoder.save(progress.elapsed)
        critic.save(progress.elapsed)
    vae.decode_latent.load_state_dict(decoder.average.state_dict())
    vae.requires_grad_(False)
    after = measured(vae, objective, plan, device)
    print(f"decoder: after {after}", flush=True)
    return after | {"decoder_steps": decoder.steps, "decoder_minutes": progress.elapsed}


def _train_decoder(
    lesson: Lesson, decoder: Trainee, critic: Trainee, progress: Progress, shots: Shots, plan: Plan
) -> None:
    order = torch.Generator().manual_seed(decoder.steps)
    strength = torch.zeros((), device=shots.pose.device)
    learn = Graphed(lesson, *shots.some(plan.decoder_batch, order), strength)
    while progress.goes_on:
        for trainee in (decoder, critic):
            trainee.prepare(progress.share)
        strength.fill_(float(progress.share > CRITIC_ALONE))
        progress.step(learn(*shots.some(plan.decoder_batch, order), strength))


@torch.no_grad()
def measured(vae: TinyVAE, objective: Objective, plan: Plan, device: torch.device) -> dict[str, float]:
    """Of held-out clips made after a past of the model's own: decibels, and gradient energy in parts of the truth's."""
    shots = Shots.drawn(plan.held_out, HELD_OUT_SEED + 3, plan, device)
    ratios, sharpness = [], []
    for at in range(0, len(shots.pose), plan.decoder_batch):
        part = slice(at, at + plan.decoder_batch)
        pictures = as_pictures(shots.pictures[part])
        true = encode_clips(vae, pictures)
        history = torch.ones(len(true), dtype=torch.bool, device=device)
        made = objective.dream(true, objective.terms_twice(shots.pose[part], shots.scenes[part]), history, DREAMS + 1)
        shown = decode_stream(vae, vae.denormalize(made)).clamp(-1, 1)
        ratios += [psnr(*pair) for pair in zip(shown, pictures, strict=True)]
        sharpness.append(gradient_energy(shown) / gradient_energy(pictures))
    return {"psnr_made": float(torch.stack(ratios).mean()), "sharpness_made": float(torch.stack(sharpness).mean())}


def gradient_energy(pictures: Tensor) -> Tensor:
    """Mean absolute difference of neighbouring pixels."""
    return pictures.diff(dim=-1).abs().mean() + pictures.diff(dim=-2).abs().mean()
