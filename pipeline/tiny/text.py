"""The small world's text encoder: a prompt's scene as rows of a learned table.

R = 4 rows, one for each of place, thing, hour and weather.
"""

import torch
from torch import Tensor, nn

from pipeline.text_encoder import EncodedPrompt
from pipeline.tiny import scene
from pipeline.tiny.landscape import HOURS, OVERRIDES, PLACES, WEATHERS

KINDS = (len(PLACES), 1 + len(OVERRIDES), len(HOURS), len(WEATHERS))
"""How many values each attribute of a scene has."""


class TinyTextEncoder(nn.Module):
    """The table, trained with the transformer, behind the interface of pipeline.text_encoder."""

    def __init__(self, text_dim: int):
        super().__init__()
        self.table = nn.Embedding(sum(KINDS), text_dim)
        starts = [sum(KINDS[:attribute]) for attribute in range(len(KINDS))]
        self.register_buffer("starts", torch.tensor(starts), persistent=False)

    def forward(self, scenes: Tensor) -> Tensor:
        """scenes: (..., 4) int64, indexes as in scene.Scene. Returns (..., R, text_dim)."""
        return self.table(scenes + self.starts)

    @torch.inference_mode()
    def encode(self, prompt: str) -> EncodedPrompt:
        shown, unknown, guessed = scene.understand(prompt)
        return EncodedPrompt(self(torch.tensor(shown)), scene.sentence(shown), unknown, guessed)

    def merge(self, previous: str, prompt: str) -> str:
        """The prompt's scene with the rest of the one before; words that no one listed stay at the end, to be told."""
        shown, unknown, guessed = scene.understand(prompt, scene.understand(previous).scene)
        # "and" keeps two words that were apart from becoming one phrase.
        return " and ".join((scene.sentence(shown), *(word for word, _ in guessed), *unknown))
