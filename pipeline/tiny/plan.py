"""How much of everything a training run takes."""

from dataclasses import dataclass

HELD_OUT_SEED = 10**6
"""Clips of this seed and those after it are never trained on."""


@dataclass(frozen=True)
class Plan:
    """Minutes are of wall time, sizes count clips.

    In the first `alone_share` of its time the transformer makes every chunk from pose and prompt alone: the picture as
    a function of both is most of what there is to learn, and without a past a step takes less than half as long.
    """

    vae_minutes: float
    minutes: float
    joint_minutes: float
    recogniser_minutes: float
    vae_batch: int
    vae_pool: int
    batch: int
    chunks: int
    pool: int
    first_pool: int
    made_at_once: int
    draw_share: float
    held_out: int
    joint_batch: int
    shots: int
    stills: int
    recogniser_batch: int
    alone_share: float = 0.4
    coarseness: int = 1
    vae_rate: float = 6e-4
    rate: float = 1e-3
    joint_rate: float = 2e-4
    recogniser_rate: float = 2e-3


PLANS = {
    "full": Plan(
        vae_minutes=6.0,
        minutes=24.0,
        joint_minutes=7.0,
        recogniser_minutes=0.5,
        vae_batch=16,
        vae_pool=3072,
        batch=48,
        chunks=8,
        pool=40_000,
        first_pool=1024,
        made_at_once=64,
        draw_share=0.25,
        held_out=64,
        joint_batch=8,
        shots=1024,
        stills=8192,
        recogniser_batch=256,
    ),
    "small": Plan(
        vae_minutes=0.2,
        minutes=0.2,
        joint_minutes=0.1,
        recogniser_minutes=0.05,
        vae_batch=2,
        vae_pool=4,
        batch=2,
        chunks=4,
        pool=8,
        first_pool=2,
        made_at_once=2,
        draw_share=0.2,
        held_out=2,
        joint_batch=1,
        shots=2,
        stills=8,
        recogniser_batch=8,
        coarseness=8,
    ),
}
