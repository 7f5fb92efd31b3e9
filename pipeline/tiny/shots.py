"""Drawn clips that keep their pictures, for what is trained on pictures."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.tiny.clips import ClipMaker
from pipeline.tiny.plan import Plan
from pipeline.tiny.train_vae import as_bytes


@dataclass
class Shots:
    """Clips with their pictures: (P, N, 3, 4, H, W) uint8, pose (P, N, 2, 4), scenes (P, N, 4).

    `oldest` is the first of those that renew() replaces next.
    """

    pictures: Tensor
    pose: Tensor
    scenes: Tensor
    oldest: int = 0

    @classmethod
    def drawn(cls, clips: int, seed: int, plan: Plan, device: torch.device) -> "Shots":
        maker = ClipMaker(seed, device, plan.coarseness)
        at_once = min(clips, plan.made_at_once)
        made = [_made(maker, at_once, plan) for _ in range(clips // at_once)]
        return cls(*(torch.cat(parts) for parts in zip(*made, strict=True)))

    def renew(self, maker: ClipMaker, plan: Plan) -> None:
        """Draw new clips in place of the oldest."""
        count = min(len(self.pose), plan.made_at_once)
        at = slice(self.oldest, self.oldest + count)
        self.pictures[at], self.pose[at], self.scenes[at] = _made(maker, count, plan)
        self.oldest = at.stop if at.stop + count <= len(self.pose) else 0

    def some(self, count: int, order: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        chosen = torch.randint(len(self.pose), (count,), generator=order).to(self.pose.device)
        return self.pictures[chosen], self.pose[chosen], self.scenes[chosen]


def _made(maker: ClipMaker, count: int, plan: Plan) -> tuple[Tensor, Tensor, Tensor]:
    clips = maker.make(count, plan.chunks)
    return as_bytes(clips.pictures), clips.pose, clips.scenes
