"""What scene a picture shows: so a world that begins with somebody's picture goes on as that picture's place.

B pictures, C latent channels, h w latent height and width.
"""

import torch
from torch import Tensor, nn

from pipeline.tiny.scene import Scene, sentence
from pipeline.tiny.text import KINDS
from pipeline.tiny.vae import GROUPS, LATENT_CHANNELS

WIDTHS = (48, 64, 96)
SURE_OF_THINGS = 0.9


class Recogniser(nn.Module):
    """A small convolutional classifier on latent frames of still pictures."""

    def __init__(self):
        super().__init__()
        layers: list[nn.Module] = []
        before = LATENT_CHANNELS
        for width in WIDTHS:
            layers += [nn.Conv2d(before, width, 3, stride=2, padding=1), nn.GroupNorm(GROUPS, width), nn.SiLU()]
            before = width
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(2 * before, sum(KINDS))

    def forward(self, latent: Tensor) -> tuple[Tensor, ...]:
        """(B, C, h, w), normalised, to a row of logits for each attribute of a scene: (B, kinds) each."""
        seen = self.layers(latent)
        pooled = torch.cat((seen.mean((2, 3)), seen.amax((2, 3))), dim=1)
        return self.head(pooled).split(KINDS, dim=1)

    @torch.inference_mode()
    def name(self, latent: Tensor) -> str:
        """The sentence (see scene.sentence) of one latent frame (C, h, w): the likeliest value of each attribute.

        Things other than the place's own are named where they are hardly to be doubted.
        """
        chances = [logits[0].softmax(0) for logits in self(latent[None].float())]
        scene = Scene(*(int(each.argmax()) for each in chances))
        return sentence(scene if chances[1].max() >= SURE_OF_THINGS else scene._replace(thing=0))
