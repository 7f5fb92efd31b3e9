"""The first part: the VAE, on pictures of the renderer."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.tiny.clips import ClipMaker
from pipeline.tiny.muon import matrices_of
from pipeline.tiny.plan import HELD_OUT_SEED, Plan
from pipeline.tiny.trainee import Graphed, Progress, Stop, Trainee, forget, have_trained_again
from pipeline.tiny.vae import TinyVAE

LATENTS = 2
"""Latent frames of a training clip: what the decoder hands on is trained with the second."""
STEPS_A_REFRESH = 50
EDGE_SHARE, EDGE_WINDOW, EDGE_POWERS = 1.0, 8, (1, 2, 4)
"""What missing edges cost here, in how large a window (pixels) one may stand elsewhere for nothing, and by which powers
they are told: by the means of a window's gradients."""


def train_vae(vae: TinyVAE, plan: Plan, folder: Path, device: torch.device, stop: Stop) -> dict[str, float]:
    """Fill `vae` with the moving average of its training; what was reached on held-out pictures."""
    trainee = Trainee(vae, plan.vae_rate, folder / "vae.pt", matrices=matrices_of(vae))
    progress = Progress("vae", plan.vae_minutes, stop, trainee)
    if progress.goes_on:
        forget(folder, "pool.pt", "joint-*.pt", "recogniser.pt")  # of other latents
        have_trained_again(folder / "transformer.pt")
        _train(trainee, progress, plan, device)
        progress.save()
    vae.load_state_dict(trainee.average.state_dict())
    _set_statistics(vae.eval(), plan, device)
    return measured(vae, plan, device) | {"vae_steps": trainee.steps, "vae_minutes": progress.elapsed}


def _train(trainee: Trainee, progress: Progress, plan: Plan, device: torch.device) -> None:
    maker = ClipMaker(1 + trainee.steps, device, plan.coarseness)
    count = max(1, plan.vae_pool // plan.made_at_once)
    pool = torch.cat([as_bytes(maker.make(plan.made_at_once, LATENTS).pictures) for _ in range(count)])
    order = torch.Generator().manual_seed(trainee.steps)

    def learn(pictures: Tensor) -> Tensor:
        loss = _loss(trainee.module, as_pictures(pictures))
        trainee.update(loss)
        return loss.detach()

    learn = Graphed(learn, pool[: plan.vae_batch])
    while progress.goes_on:
        chosen = torch.randint(len(pool), (plan.vae_batch,), generator=order).to(device)
        trainee.prepare(progress.share)
        progress.step(learn(pool[chosen]))
        if progress.steps % STEPS_A_REFRESH == 0:  # fresh pictures in place of the oldest
            at = progress.steps // STEPS_A_REFRESH * plan.made_at_once % (len(pool) - plan.made_at_once + 1)
            pool[at : at + plan.made_at_once] = as_bytes(maker.make(plan.made_at_once, LATENTS).pictures)


def as_bytes(pictures: Tensor) -> Tensor:
    """[-1, 1] to uint8."""
    return pictures.add(1).mul(127.5).round().clamp(0, 255).byte()


def as_pictures(pixels: Tensor) -> Tensor:
    """uint8 to [-1, 1]."""
    return pixels.float() / 127.5 - 1


def _loss(vae: TinyVAE, pictures: Tensor) -> Tensor:
    """pictures: (B, N, 3, 4, H, W). What the pictures lack, and 4e-4 KL; the decoder is run as a stream."""
    with torch.autocast(pictures.device.type, torch.bfloat16, enabled=pictures.is_cuda):
        mean, log_variance = vae.encode_pictures(pictures.flatten(0, 1)).chunk(2, dim=1)
        mean, log_variance = mean.float(), log_variance.float().clamp(-20, 10)
        latent = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        made = decode_stream(vae, latent.unflatten(0, pictures.shape[:2]))
    divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
    return picture_loss(made, pictures, EDGE_SHARE) + 4e-4 * divergence


def decode_stream(vae: TinyVAE, latents: Tensor) -> Tensor:
    """(B, N, C, h, w), not normalised, to pictures (B, N, 3, 4, H, W), float32."""
    made, past = [], None
    for frame in latents.unbind(1):
        picture, past = vae.decode_latent(frame, past)
        made.append(picture)
    return torch.stack(made, dim=1).float()


def picture_loss(made: Tensor, pictures: Tensor, edge_share: float) -> Tensor:
    """1.5 L1, and `edge_share` times what each window's gradients have too much or too little of, in each direction.

    L1 alone leaves an edge in doubt where it is likeliest; squares, or an error of the gradients pixel by pixel, would
    rather have it drawn as a slope. The means of gradients to several powers are those of edges, not of ripples, which
    have the same energy in many small ones.
    """
    missing = sum((one - other).abs().mean() for one, other in zip(_edges(made), _edges(pictures), strict=True))
    return 1.5 * (made - pictures).abs().mean() + edge_share * missing


def _edges(pictures: Tensor) -> list[Tensor]:
    """(B, N, 3, 4, H, W) to (2*B*N, 4, y, x) for each of EDGE_POWERS: the gradients' mean to that power and back, in
    windows that half overlap; across and down apart, colours together."""
    across, down = pictures.diff(dim=-1)[..., :-1, :], pictures.diff(dim=-2)[..., :-1]
    energy = torch.stack((across, down)).square().mean(3).flatten(0, 2) + 1e-6  # the root of 0 has no slope
    windows = {"kernel_size": EDGE_WINDOW, "stride": EDGE_WINDOW // 2, "ceil_mode": True}
    means = (F.avg_pool2d(energy ** (power / 2), **windows) for power in EDGE_POWERS)
    return [(mean + 1e-8) ** (1 / power) for mean, power in zip(means, EDGE_POWERS, strict=True)]


@torch.no_grad()
def _set_statistics(vae: TinyVAE, plan: Plan, device: torch.device) -> None:
    """Each latent channel's mean and deviation over held-out clips."""
    clips = ClipMaker(HELD_OUT_SEED, device, plan.coarseness).make(plan.held_out, LATENTS).pictures
    latents = torch.cat([vae.encode_pictures(clip).chunk(2, dim=1)[0] for clip in clips])
    vae.mean.copy_(latents.mean((0, 2, 3)))
    vae.std.copy_(latents.std((0, 2, 3)))


@torch.no_grad()
def measured(vae: TinyVAE, plan: Plan, device: torch.device) -> dict[str, float]:
    """Decibels of held-out clips after encoding and decoding."""
    clips = ClipMaker(HELD_OUT_SEED + 2, device, plan.coarseness).make(plan.held_out, LATENTS).pictures
    ratios = torch.stack([psnr(decode_clip(vae, encode_clip(vae, clip)), clip) for clip in clips])
    result = {"vae_psnr_mean": float(ratios.mean()), "vae_psnr_5th_percentile": float(ratios.quantile(0.05))}
    print(f"vae: {result['vae_psnr_mean']:.2f} dB on held-out pictures", flush=True)
    return result


def encode_clip(vae: TinyVAE, pictures: Tensor) -> Tensor:
    """(N, 3, 4, H, W) to normalised latents (N, C, h, w)."""
    return vae.normalize(vae.encode_pictures(pictures).chunk(2, dim=1)[0])


def encode_clips(vae: TinyVAE, pictures: Tensor) -> Tensor:
    """(B, N, 3, 4, H, W) to normalised latents (B, N, C, h, w)."""
    return encode_clip(vae, pictures.flatten(0, 1)).unflatten(0, pictures.shape[:2])


def decode_clip(vae: TinyVAE, latents: Tensor) -> Tensor:
    """(N, C, h, w) to pictures (N, 3, 4, H, W), as a stream."""
    return vae.decoder().decode(latents.movedim(0, 1)).unflatten(1, (len(latents), -1)).movedim(0, 1)


def psnr(made: Tensor, truth: Tensor) -> Tensor:
    """Decibels for a range of 2."""
    return 10 * torch.log10(4 / (made - truth).square().mean())
