"""Drawn clips that keep their pictures, for what is trained on pictures."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.tiny.clips import ClipMaker
from pipeline.tiny.plan import Plan
from pipeline.tiny.train_vae import as_bytes


@dataclass
class Shots:
    """Clips with their pictures: (P, N, 3, 4, H, W) uint8, pose (P, N, 2, 4), scenes (P, N, 4)."""

    pictures: Tensor
    pose: Tensor
    scenes: Tensor

    @classmethod
    def drawn(cls, clips: int, seed: int, plan: Plan, device: torch.device) -> "Shots":
        maker = ClipMaker(seed, device, plan.coarseness)
        at_once = min(clips, plan.made_at_once)
        made = [maker.make(at_once, plan.chunks) for _ in range(clips // at_once)]
        pictures = torch.cat([as_bytes(each.pictures) for each in made])
        return cls(pictures, torch.cat([each.pose for each in made]), torch.cat([each.scenes for each in made]))

    def some(self, count: int, order: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        chosen = torch.randint(len(self.pose), (count,), generator=order).to(self.pose.device)
        return self.pictures[chosen], self.pose[chosen], self.scenes[chosen]
