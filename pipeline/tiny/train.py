"""`chunkcast train tiny`: the small world from nothing, on one GPU, within minutes.

Two parts in turn, each resumable: the VAE on pictures drawn by the renderer, then the transformer with the text table
on the latents of drawn clips. What is drawn follows from the seed alone.

B clips, N latent frames (chunks) a clip.
"""

import argparse
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline.camera import intrinsics_from_view, live_motion, plucker_map, ray_directions
from pipeline.presets import Preset, find_preset
from pipeline.tiny import renderer
from pipeline.tiny.clips import ClipMaker, Clips
from pipeline.tiny.load import TinyWorld, make_tiny, save_tiny
from pipeline.tiny.teacher_forcing import STREAMS, teacher_forcing
from pipeline.tiny.vae import TinyVAE
from pipeline.transformer import CameraTerms, TextTerms

HELD_OUT_SEED = 10**6
EMA_DECAY = 0.999
REPORT_SECONDS = 5.0


@dataclass(frozen=True)
class Plan:
    """How much of everything; minutes are of wall time, sizes count clips."""

    vae_minutes: float
    transformer_minutes: float
    vae_batch: int
    vae_pool: int
    batch: int
    chunks: int
    pool: int
    first_pool: int
    made_at_once: int
    draw_share: float
    held_out: int
    coarseness: int = 1
    vae_rate: float = 6e-4
    rate: float = 1e-3
    warmup: float = 0.03


PLANS = {
    "full": Plan(4.0, 10.0, 64, 3072, 48, 8, 24_000, 1024, 64, 0.3, 64),
    "small": Plan(0.2, 0.2, 2, 4, 2, 4, 8, 2, 2, 0.2, 2, coarseness=8),
}


class Progress:
    """The share of a part's minutes that is gone; prints a line now and then; ends at the time or at Ctrl-C."""

    def __init__(self, name: str, minutes: float, spent: float):
        self.name, self.minutes, self.spent = name, minutes, spent
        self.steps = 0
        self._begun = self._reported = time.monotonic()
        self._losses: list[Tensor] = []

    @property
    def elapsed(self) -> float:
        """Minutes, those of earlier runs included."""
        return self.spent + (time.monotonic() - self._begun) / 60

    @property
    def share(self) -> float:
        return min(1.0, self.elapsed / self.minutes)

    def step(self, loss: Tensor) -> None:
        self.steps += 1
        self._losses.append(loss.detach())
        if time.monotonic() - self._reported > REPORT_SECONDS:
            self.report()

    def report(self) -> float:
        """Print and return the mean loss since the last report."""
        loss = float(torch.stack(self._losses).mean()) if self._losses else float("nan")
        left = max(0.0, self.minutes - self.elapsed)
        print(f"{self.name}: step {self.steps}, loss {loss:.4f}, {left:.1f} min left", flush=True)
        self._reported, self._losses = time.monotonic(), []
        return loss


class Stop:
    """Ctrl-C asks for an end after the step; a second one ends at once."""

    def __init__(self) -> None:
        self.asked = False
        signal.signal(signal.SIGINT, self._ask)

    def _ask(self, *_: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        print("stopping after this step; the checkpoint is kept", flush=True)


class Trainee:
    """A module, its optimizer and its moving average, with a checkpoint of all three."""

    def __init__(self, module: nn.Module, rate: float, path: Path):
        self.module, self.rate, self.path = module, rate, path
        self.average = deepcopy(module).eval().requires_grad_(False)
        cuda = next(module.parameters()).is_cuda
        self.optimizer = torch.optim.AdamW(module.parameters(), rate, betas=(0.9, 0.98), weight_decay=0.01, fused=cuda)
        self.spent = 0.0
        self.steps = 0
        if path.exists():
            self._load()

    def update(self, loss: Tensor, share: float, warmup: float) -> None:
        """One optimizer step at the rate for `share` of the time gone: up, level, down to nothing."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * min(1.0, share / warmup + 0.01, (1 - share) / 0.5 + 0.005)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        self.optimizer.step()
        self.steps += 1
        decay = min(EMA_DECAY, (1 + self.steps) / (10 + self.steps))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.module.parameters()), 1 - decay)

    def save(self, spent: float) -> None:
        state = {
            "module": self.module.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "spent": spent,
            "steps": self.steps,
        }
        part = self.path.with_suffix(".part")
        torch.save(state, part)
        part.replace(self.path)

    def _load(self) -> None:
        state = torch.load(self.path, map_location=next(self.module.parameters()).device, weights_only=True)
        self.module.load_state_dict(state["module"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.spent, self.steps = state["spent"], state["steps"]
        print(f"{self.path.name}: going on after {self.spent:.1f} min", flush=True)


# The VAE


def train_vae(vae: TinyVAE, plan: Plan, folder: Path, device: torch.device, stop: Stop) -> dict[str, float]:
    trainee = Trainee(vae, plan.vae_rate, folder / "vae.pt")
    progress = Progress("vae", plan.vae_minutes, trainee.spent)
    if progress.share < 1:
        maker = ClipMaker(1 + trainee.steps, device, plan.coarseness)
        pool = _as_bytes(_many(maker, plan.vae_pool, 2, plan.made_at_once))
        order = torch.Generator().manual_seed(trainee.steps)
        while (progress.share < 1 or not trainee.steps) and not stop.asked:
            chosen = torch.randint(len(pool), (plan.vae_batch,), generator=order).to(device)
            loss = _vae_loss(vae, pool[chosen].float() / 127.5 - 1)
            trainee.update(loss, progress.share, plan.warmup)
            progress.step(loss)
            if progress.steps % 50 == 0:  # fresh pictures in place of the oldest
                at = progress.steps // 50 * plan.made_at_once % (len(pool) - plan.made_at_once + 1)
                pool[at : at + plan.made_at_once] = _as_bytes(maker.make(plan.made_at_once, 2).pictures)
        trainee.save(progress.elapsed)
    vae.load_state_dict(trainee.average.state_dict())
    return _finish_vae(vae.eval(), plan, device) | {"vae_steps": trainee.steps, "vae_minutes": progress.elapsed}


def _many(maker: ClipMaker, clips: int, latents: int, at_once: int) -> Tensor:
    return torch.cat([_as_bytes(maker.make(at_once, latents).pictures) for _ in range(max(1, clips // at_once))])


def _as_bytes(pictures: Tensor) -> Tensor:
    return pictures if pictures.dtype == torch.uint8 else pictures.add(1).mul(127.5).round().clamp(0, 255).byte()


def _vae_loss(vae: TinyVAE, pictures: Tensor) -> Tensor:
    """pictures: (B, N, 3, 4, H, W). L1 + 2 MSE + 0.7 L1 of gradients + 4e-4 KL, the decoder run as a stream."""
    with torch.autocast(pictures.device.type, torch.bfloat16, enabled=pictures.is_cuda):
        mean, log_variance = vae.encode_pictures(pictures.flatten(0, 1)).chunk(2, dim=1)
        mean, log_variance = mean.float(), log_variance.float().clamp(-20, 10)
        latent = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        made, past = [], None
        for frame in latent.unflatten(0, pictures.shape[:2]).unbind(1):
            picture, past = vae.decode_latent(frame, past)
            made.append(picture)
    error = torch.stack(made, dim=1).float() - pictures
    slopes = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
    return error.abs().mean() + 2 * error.square().mean() + 0.7 * slopes + 4e-4 * divergence


@torch.no_grad()
def _finish_vae(vae: TinyVAE, plan: Plan, device: torch.device) -> dict[str, float]:
    """Set the latents' statistics and measure on held-out pictures."""
    clips = ClipMaker(HELD_OUT_SEED, device, plan.coarseness).make(plan.held_out, 2).pictures
    latents = torch.cat([vae.encode_pictures(clip).chunk(2, dim=1)[0] for clip in clips])
    vae.mean.copy_(latents.mean((0, 2, 3)))
    vae.std.copy_(latents.std((0, 2, 3)))
    ratios = torch.stack([_psnr(decode_clip(vae, encode_clip(vae, clip)), clip) for clip in clips])
    result = {"vae_psnr_mean": float(ratios.mean()), "vae_psnr_5th_percentile": float(ratios.quantile(0.05))}
    print(f"vae: {result['vae_psnr_mean']:.2f} dB on held-out pictures", flush=True)
    return result


def encode_clip(vae: TinyVAE, pictures: Tensor) -> Tensor:
    """(N, 3, 4, H, W) to normalised latents (N, C, h, w)."""
    return vae.normalize(vae.encode_pictures(pictures).chunk(2, dim=1)[0])


def decode_clip(vae: TinyVAE, latents: Tensor) -> Tensor:
    """(N, C, h, w) to pictures (N, 3, 4, H, W), as a stream."""
    return vae.decoder().decode(latents.movedim(0, 1)).unflatten(1, (len(latents), -1)).movedim(0, 1)


def _psnr(made: Tensor, truth: Tensor) -> Tensor:
    """Decibels for a range of 2."""
    return 10 * torch.log10(4 / (made - truth).square().mean())


# The transformer


@dataclass
class Pool:
    """Latents (P, N, C, h, w) float16 of drawn clips, their pose and scenes; the oldest make room for the newest."""

    latents: Tensor
    pose: Tensor
    scenes: Tensor
    filled: int = 0
    next: int = 0

    @classmethod
    def empty(cls, clips: int, chunks: int, preset: Preset, device: torch.device) -> "Pool":
        channels, _, h, w = preset.latent_shape
        return cls(
            torch.empty(clips, chunks, channels, h, w, dtype=torch.float16, device=device),
            torch.empty(clips, chunks, 2, 4, dtype=torch.float64, device=device),
            torch.empty(clips, chunks, 4, dtype=torch.int64, device=device),
        )

    @torch.no_grad()
    def add(self, vae: TinyVAE, clips: Clips) -> None:
        count = len(clips.pose)
        if self.next + count > len(self.pose):
            self.next = 0
        at = slice(self.next, self.next + count)
        self.latents[at] = encode_clip(vae, clips.pictures.flatten(0, 1)).unflatten(0, clips.scenes.shape[:2]).half()
        self.pose[at], self.scenes[at] = clips.pose, clips.scenes
        self.next += count
        self.filled = max(self.filled, self.next)


class Objective(nn.Module):
    """The transformer and the text table as they are trained; the loss of a batch of clips."""

    def __init__(self, world: TinyWorld, preset: Preset):
        super().__init__()
        self.transformer, self.text = world.transformer, world.text
        self.window, self.grid = preset.window, preset.token_grid
        _, _, h, w = preset.latent_shape
        view = intrinsics_from_view(preset.field_of_view, 8 * h, 8 * w)
        self.register_buffer("directions", ray_directions(view, 8 * h, 8 * w), persistent=False)

    def loss(self, latents: Tensor, pose: Tensor, scenes: Tensor, own_history: bool) -> Tensor:
        """Mean squared error of the flow. latents: (B, N, C, h, w); pose: (B, N, 2, 4); scenes: (B, N, 4)."""
        terms = self.terms(pose, scenes)
        history = torch.rand(len(latents), device=latents.device) > 0.15
        clean = latents
        if own_history:
            with torch.no_grad():
                clean = self.dream(latents, terms, history)
        clean = _with_context_noise(clean)
        sigma = _random_sigmas(latents.shape[:2], latents.device)
        noise = torch.randn_like(latents)
        noisy = torch.lerp(latents, noise, sigma[:, :, None, None, None])
        flow = self.flow(clean, noisy, sigma, terms, history)
        return (flow.float() - (noise - latents)).square().mean()

    def dream(self, latents: Tensor, terms: tuple, history: Tensor) -> Tensor:
        """What the model makes of each chunk after true history, in two steps."""
        made = None
        for level in (1.0, 0.5):
            noise = torch.randn_like(latents)
            noisy = noise if made is None else torch.lerp(made, noise, level)
            sigma = torch.full(latents.shape[:2], level, device=latents.device)
            made = noisy - level * self.flow(latents, noisy, sigma, terms, history).float()
        return made

    def flow(self, clean: Tensor, noisy: Tensor, sigma: Tensor, terms: tuple, history: Tensor) -> Tensor:
        """The noisy stream's flow, (B, N, C, h, w)."""
        chunks = clean.shape[1]
        memory = teacher_forcing(history, chunks, self.window, self.grid, self.transformer.config.head_width)
        both = torch.stack((clean, noisy)).flatten(0, 2).unsqueeze(2)
        time_of = self.transformer.embed_time(torch.stack((torch.zeros_like(sigma), 1000 * sigma)).flatten())
        with torch.autocast(clean.device.type, torch.bfloat16, enabled=clean.is_cuda):
            flow = self.transformer(both, time_of, *terms, memory)
        return flow.squeeze(2).unflatten(0, (STREAMS, *sigma.shape))[1]

    def terms(self, pose: Tensor, scenes: Tensor) -> tuple[list[TextTerms], list[CameraTerms]]:
        """Text and camera of all chunks, the same for both streams."""
        with torch.autocast(pose.device.type, torch.bfloat16, enabled=pose.is_cuda):
            text = self.transformer.embed_text(self.text(scenes.flatten(0, 1)))
            motion = live_motion(pose.flatten(0, 1).unsqueeze(1)).float()
            plucker = plucker_map(motion, self.directions.float())
            camera = self.transformer.embed_camera(plucker, pose.flatten(0, 1).unsqueeze(1))
        return _twice(text, TextTerms), _twice(camera, CameraTerms)


def _twice(terms: list, kind: Callable) -> list:
    return [kind(*(torch.cat((part, part)) for part in layer)) for layer in terms]


def _with_context_noise(clean: Tensor) -> Tensor:
    """A stream's own past is never quite clean: up to 12% noise on 70% of the chunks."""
    shape = (*clean.shape[:2], 1, 1, 1)
    level = 0.12 * torch.rand(shape, device=clean.device) * (torch.rand(shape, device=clean.device) < 0.7)
    return torch.lerp(clean, torch.randn_like(clean), level)


def _random_sigmas(shape: tuple[int, int], device: torch.device) -> Tensor:
    """45% pure noise, 30% about the second step's level, the rest anywhere."""
    kind, value = torch.rand(shape, device=device), torch.rand(shape, device=device)
    return torch.where(kind < 0.45, 1.0, torch.where(kind < 0.75, 0.4 + 0.2 * value, 0.02 + 0.98 * value))


def train_transformer(
    world: TinyWorld, plan: Plan, folder: Path, device: torch.device, stop: Stop
) -> tuple[TinyWorld, dict[str, float]]:
    preset = find_preset("tiny")
    objective = Objective(world, preset).to(device)
    if device.type == "cuda":
        for block in world.transformer.blocks:  # one compilation serves all: they differ in weights alone
            block.compile(dynamic=False)
    trainee = Trainee(objective, plan.rate, folder / "transformer.pt")
    progress = Progress("transformer", plan.transformer_minutes, trainee.spent)
    maker = ClipMaker(2 + trainee.steps, device, plan.coarseness)
    pool = Pool.empty(plan.pool, plan.chunks, preset, device)
    batches = _batches(pool, plan, world.vae, maker, trainee.steps)
    while (progress.share < 1 or not trainee.steps) and not stop.asked:
        own_history = progress.share > 0.25 and progress.steps % 3 == 0
        loss = objective.loss(*next(batches), own_history)
        trainee.update(loss, progress.share, plan.warmup)
        progress.step(loss)
    trainee.save(progress.elapsed)
    best = trainee.average
    held_out = _held_out(best, world.vae, plan, device)
    print(f"transformer: held out {held_out}", flush=True)
    trained = TinyWorld(best.transformer, world.vae, best.text)
    facts = {"transformer_steps": trainee.steps, "transformer_minutes": progress.elapsed, "clips_drawn": pool.filled}
    return trained, held_out | facts


def _batches(pool: Pool, plan: Plan, vae: TinyVAE, maker: ClipMaker, seed: int) -> Iterator[tuple[Tensor, ...]]:
    """Random clips of the pool for ever; a share of the time goes into drawing new ones."""
    order = torch.Generator().manual_seed(seed)
    device = pool.pose.device
    while pool.filled < plan.first_pool:
        pool.add(vae, maker.make(plan.made_at_once, plan.chunks))
    begun, drawing = time.monotonic(), 0.0
    while True:
        if drawing < plan.draw_share * (time.monotonic() - begun):
            at = time.monotonic()
            pool.add(vae, maker.make(plan.made_at_once, plan.chunks))
            if device.type == "cuda":
                torch.cuda.synchronize()
            drawing += time.monotonic() - at
        chosen = torch.randint(pool.filled, (plan.batch,), generator=order).to(device)
        yield pool.latents[chosen].float(), pool.pose[chosen], pool.scenes[chosen]


@torch.no_grad()
def _held_out(objective: Objective, vae: TinyVAE, plan: Plan, device: torch.device) -> dict[str, float]:
    """Squared error of the latents made in one step from pure noise, without and with true history, and in pictures."""
    clips = ClipMaker(HELD_OUT_SEED + 1, device, plan.coarseness).make(plan.held_out, plan.chunks)
    latents = torch.stack([encode_clip(vae, pictures) for pictures in clips.pictures])
    terms = objective.terms(clips.pose, clips.scenes)
    sigma = torch.ones(latents.shape[:2], device=device)
    result = {}
    for name, past in (("without_history", False), ("with_history", True)):
        history = torch.full((len(latents),), past, device=device)
        noise = torch.randn_like(latents)
        made = noise - objective.flow(latents, noise, sigma, terms, history).float()
        result[f"held_out_error_{name}"] = float((made - latents).square().mean())
        pairs = zip(made, clips.pictures, strict=True)
        result[f"psnr_{name}"] = float(torch.stack([_psnr(decode_clip(vae, m), p) for m, p in pairs]).mean())
    return result


# The command


def main(argv: list[str] | None = None) -> int:
    """Train, write the weights and a JSON of what was reached; 0, or 130 when stopped early with all kept."""
    options = _parser().parse_args(argv)
    plan = _plan(options)
    found = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(found if options.device == "auto" else options.device)
    folder = Path(options.out)
    folder.mkdir(parents=True, exist_ok=True)
    _prepare(device)
    stop, begun = Stop(), time.monotonic()
    world = TinyWorld(*(part.to(device) for part in _seeded(options.seed)))
    world.vae.to(memory_format=torch.channels_last)
    facts = train_vae(world.vae, plan, folder, device, stop)
    world.vae.requires_grad_(False)
    if not stop.asked:
        world, more = train_transformer(world, plan, folder, device, stop)
        facts |= more
    made_by = _made_by(device, argv)
    save_tiny(world, folder / "weights", made_by)
    result = {**made_by, "seconds": round(time.monotonic() - begun, 1), **facts, "plan": asdict(plan)}
    (folder / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result), flush=True)
    return 130 if stop.asked else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="chunkcast train tiny", description=main.__doc__)
    parser.add_argument("--out", default="runs/tiny", help="folder of checkpoints and weights; an earlier run goes on")
    parser.add_argument("--size", choices=PLANS, default="full", help="small: a minute on a CPU, to see that it works")
    parser.add_argument("--vae-minutes", type=float, help="minutes for the VAE, earlier runs included")
    parser.add_argument("--minutes", type=float, help="minutes for the transformer, earlier runs included")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def _plan(options: argparse.Namespace) -> Plan:
    values = asdict(PLANS[options.size])
    if options.vae_minutes is not None:
        values["vae_minutes"] = options.vae_minutes
    if options.minutes is not None:
        values["transformer_minutes"] = options.minutes
    return Plan(**values)


def _prepare(device: torch.device) -> None:
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
        renderer.shade = torch.compile(renderer.shade, dynamic=False)  # several times the pictures a second


def _seeded(seed: int) -> TinyWorld:
    torch.manual_seed(seed)
    return make_tiny()


def _made_by(device: torch.device, argv: list[str] | None) -> dict[str, str]:
    arguments = sys.argv[1:] if argv is None else argv
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "command": " ".join(["chunkcast train tiny", *arguments]),
        "commit": commit.stdout.strip() or "unknown",
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
    }


if __name__ == "__main__":
    sys.exit(main())
