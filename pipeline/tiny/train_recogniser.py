"""The last part: the recogniser, on still pictures of the renderer."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.tiny.clips import PICTURES_AT_ONCE, ClipMaker
from pipeline.tiny.plan import HELD_OUT_SEED, Plan
from pipeline.tiny.recognise import Recogniser
from pipeline.tiny.train_vae import as_bytes, as_pictures, encode_clip
from pipeline.tiny.trainee import Graphed, Progress, Stop, Trainee
from pipeline.tiny.vae import FRAMES, TinyVAE

STILLS_SEED = 3


def train_recogniser(
    recogniser: Recogniser, vae: TinyVAE, plan: Plan, folder: Path, device: torch.device, stop: Stop
) -> dict[str, float]:
    """Fill `recogniser` with the moving average of its training on still pictures, also cropped, turned and spoilt."""
    trainee = Trainee(recogniser, plan.recogniser_rate, folder / "recogniser.pt")
    progress = Progress("recogniser", plan.recogniser_minutes, stop, trainee)
    if progress.goes_on:
        _train_recogniser(trainee, vae, progress, plan, device)
        progress.save()
    recogniser.load_state_dict(trainee.average.state_dict())
    right = _recognised(recogniser.eval().requires_grad_(False), vae, plan, device)
    print(f"recogniser: held out {right}", flush=True)
    return right | {"recogniser_steps": trainee.steps, "recogniser_minutes": progress.elapsed}


def _train_recogniser(trainee: Trainee, vae: TinyVAE, progress: Progress, plan: Plan, device: torch.device) -> None:
    pixels, scenes = _drawn(STILLS_SEED, plan.stills, plan, device)
    order = torch.Generator().manual_seed(trainee.steps)

    def some() -> tuple[Tensor, Tensor]:
        chosen = torch.randint(len(pixels), (plan.recogniser_batch,), generator=order).to(device)
        return pixels[chosen], scenes[chosen]

    def learn(pixels: Tensor, scenes: Tensor) -> Tensor:
        logits = trainee.module(_still(vae, _spoilt(as_pictures(pixels))))
        loss = sum(F.cross_entropy(each, scenes[:, kind]) for kind, each in enumerate(logits))
        trainee.update(loss)
        return loss.detach()

    learn = Graphed(learn, *some())
    while progress.goes_on:
        trainee.prepare(progress.share)
        progress.step(learn(*some()))


def _drawn(seed: int, count: int, plan: Plan, device: torch.device) -> tuple[Tensor, Tensor]:
    """Stills (P, 3, H, W) uint8 and their scenes (P, 4)."""
    maker, at_once = ClipMaker(seed, device, plan.coarseness), min(count, PICTURES_AT_ONCE)
    made = [maker.stills(at_once) for _ in range(count // at_once)]
    return torch.cat([as_bytes(pictures) for pictures, _ in made]), torch.cat([scenes for _, scenes in made])


@torch.no_grad()
def _still(vae: TinyVAE, pictures: Tensor) -> Tensor:
    """(B, 3, H, W) to the normalised latents (B, C, h, w) of a picture that stands still."""
    return encode_clip(vae, pictures.unsqueeze(2).expand(-1, -1, FRAMES, -1, -1))


@torch.no_grad()
def _spoilt(pictures: Tensor) -> Tensor:
    """Mirrored, cropped and zoomed, blurred, and with other contrast: pictures of strangers are not the renderer's."""
    count = len(pictures)

    def rand(*shape: int) -> Tensor:
        return torch.rand(count, *shape, device=pictures.device)

    turn = torch.zeros(count, 2, 3, device=pictures.device)
    zoom = 1 - 0.35 * rand()
    turn[:, 0, 0] = zoom * torch.where(rand() < 0.5, -1.0, 1.0)
    turn[:, 1, 1] = zoom
    turn[:, :, 2] = (2 * rand(2) - 1) * (1 - zoom)[:, None]
    grid = F.affine_grid(turn, list(pictures.shape), align_corners=False)
    made = F.grid_sample(pictures, grid, align_corners=False, padding_mode="border")
    blurred = F.avg_pool2d(made, 5, stride=1, padding=2, count_include_pad=False)
    made = torch.lerp(made, blurred, (rand(1, 1, 1) < 0.3).float() * rand(1, 1, 1))
    contrast, level = 0.85 + 0.3 * rand(1, 1, 1), 0.1 * (2 * rand(1, 1, 1) - 1)
    return (made * contrast + level).clamp(-1, 1)


@torch.no_grad()
def _recognised(recogniser: Recogniser, vae: TinyVAE, plan: Plan, device: torch.device) -> dict[str, float]:
    """Share of held-out pictures whose place, thing, hour and weather are recognised."""
    pixels, scenes = _drawn(HELD_OUT_SEED + 4, 4 * plan.held_out, plan, device)
    logits = recogniser(_still(vae, as_pictures(pixels)))
    right = [(each.argmax(1) == scenes[:, kind]).float().mean() for kind, each in enumerate(logits)]
    names = ("place", "thing", "hour", "weather")
    return {f"recognised_{name}": float(share) for name, share in zip(names, right, strict=True)}
