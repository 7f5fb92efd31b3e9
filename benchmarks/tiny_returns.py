"""Coming back to a pose of the tiny world: does it remember? And what its VAE alone is worth."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks import tiny_measures as measures
from benchmarks.tiny_measures import as_floats, share
from benchmarks.tiny_rows import CHUNKS_A_SECOND, CLIPS, RETURNS, Bench, compared, drawing, elsewhere, scenes_of, spread
from benchmarks.tiny_truth import Truth
from benchmarks.tiny_walks import PITCH_LIMIT, PRESET, Record, Walk, closed_path, poses, random_keys, random_scene
from pipeline import camera
from pipeline.camera import FRAMES_PER_LATENT
from pipeline.chunk import SessionSpec
from pipeline.steering import starting_pose
from pipeline.tiny import scene

LEAD_IN = 16
"""Chunks before a pose is noted, two windows."""
PSNR_GOAL = 22.0


def plan_returns(count: int, seconds: float) -> list[Walk]:
    """Some walking, a pose noted, `seconds` away on a path that closes, the pose again."""
    return [_return(RETURNS + number, round(seconds * CHUNKS_A_SECOND)) for number in range(count)]


def _return(seed: int, away: int) -> Walk:
    draw = drawing(seed)
    wanted = random_scene(draw)
    lead = [keys for keys in random_keys(draw, LEAD_IN) for _ in range(FRAMES_PER_LATENT)]
    stand = [frozenset()] * FRAMES_PER_LATENT
    script = (*lead, *stand, *closed_path(draw, away), *stand)
    chunks = len(script) // FRAMES_PER_LATENT
    noted = frozenset({LEAD_IN, chunks - 1})
    spec = SessionSpec(f"return-{seed}", scene.sentence(wanted), seed, script=script)
    return Walk(spec, (frozenset(),) * chunks, {0: wanted}, {}, frozenset(), noted)


def remembers(records: Sequence[Record], bench: Bench, vae: Any) -> dict[str, Any]:
    """The picture after coming back against the one before, and beside it what other pairs of pictures give."""
    done = [record for record in records if record.chunks == len(record.walk.keys)]
    before = torch.stack([record.full[LEAD_IN] for record in done])
    after = torch.stack([record.full[record.chunks - 1] for record in done])
    stands = torch.stack([poses(record.walk)[[LEAD_IN + 1, record.chunks]] for record in done])
    scenes = torch.stack([scenes_of(record.walk, [0])[0] for record in done])
    truth = bench.truth.full(stands[:, 0], scenes)
    others = bench.truth.full(elsewhere(stands[:, 0]), scenes)
    pairs = {
        "again": (after, before),
        "truth": (after, truth),
        "renderer_elsewhere": (others, truth),
        "vae": (_through_vae(stands[:, 0], scenes, bench, vae), truth),
    }
    found = {name: compared(*pair) for name, pair in pairs.items()}
    figures = {name: {"psnr": spread(psnr), "ssim": spread(ssim)} for name, (psnr, ssim, _) in found.items()}
    return {
        **figures,
        "at_least_22_db": share(found["again"][0] >= PSNR_GOAL),
        "returns": len(done),
        "pose_error": float((stands[:, 1] - stands[:, 0])[:, :2].abs().max()),
        "goal": "again: PSNR >= 22 dB",
    }


def _still_clips(stands: Tensor, scenes: Tensor, truth: Truth) -> Tensor:
    """Four pictures of each standing viewer, (N, 3, 4, H, W) in [-1, 1]."""
    phases = torch.arange(FRAMES_PER_LATENT).repeat(len(stands))
    rows = (each.repeat_interleave(FRAMES_PER_LATENT, 0) for each in (stands, scenes))
    pictures = truth.full(*rows, phases).unflatten(0, (-1, FRAMES_PER_LATENT)).movedim(1, 2)
    return as_floats(pictures) * 2 - 1


@torch.inference_mode()
def _through_vae(stands: Tensor, scenes: Tensor, bench: Bench, vae: Any) -> Tensor:
    """The last of each latent frame's four pictures, encoded and decoded by itself, uint8 (N, 3, H, W)."""
    clips = _still_clips(stands, scenes, bench.truth)
    made = torch.stack([_streamed(vae, clip)[:, -1] for clip in clips])
    return made.add(1).mul(127.5).round().clamp(0, 255).byte()


def _streamed(vae: Any, video: Tensor) -> Tensor:
    """A stream of its own through encoder and decoder: (3, 4T, H, W) in [-1, 1], as the engine would show it."""
    return vae.decoder().decode(vae.encoder().encode(video))


# The VAE alone


@torch.inference_mode()
def picture_quality(count: int, bench: Bench, vae: Any) -> dict[str, Any]:
    """Held-out clips of two latent frames through the VAE, as a stream."""
    clips = _walking_clips(count, bench.truth)
    errors = [(_streamed(vae, clip) - clip).square().mean() / 4 for clip in clips]
    return {"vae_psnr": spread(measures.decibels(torch.stack(errors))), "clips": count, "goal": "vae_psnr mean >= 30"}


def _walking_clips(count: int, truth: Truth) -> Tensor:
    """(clips, 3, 2 * 4, H, W) in [-1, 1]."""
    stands, scenes = [], []
    for number in range(count):
        draw = drawing(CLIPS + number)
        pose = starting_pose(PRESET, CLIPS + number)
        scenes.append(random_scene(draw))
        for keys in random_keys(draw, 2):
            for _ in range(FRAMES_PER_LATENT):
                pose = camera.step(pose, keys, PITCH_LIMIT)
                stands.append(pose)
    phases = torch.arange(FRAMES_PER_LATENT).repeat(2 * count)
    what = torch.tensor(scenes).repeat_interleave(2 * FRAMES_PER_LATENT, 0)
    pictures = truth.full(torch.tensor(stands), what, phases)
    return as_floats(pictures.unflatten(0, (count, -1)).movedim(1, 2)) * 2 - 1
