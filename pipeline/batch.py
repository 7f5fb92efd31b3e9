"""The rows of one pass through the transformer, and how they are put together.

A row is one chunk of one slot. B rows, T latent frames in a chunk, C channels, h w latent height and width.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.kv_cache import CacheView
from pipeline.transformer import CameraTerms, TextTerms, TimeTerms


class Batch(NamedTuple):
    """What the passes over some rows need beside latents and timesteps.

    `condition` is extra input channels, (B, C, T, h, w), or None.
    """

    memory: CacheView
    text: list[TextTerms]
    camera: list[CameraTerms] | None
    condition: Tensor | None

    def row(self, index: int) -> "Batch":
        """That row alone."""
        pick = slice(index, index + 1)
        return Batch(
            self.memory.row(index),
            [TextTerms(*(term[pick] for term in layer)) for layer in self.text],
            self.camera and [CameraTerms(*(term[pick] for term in layer)) for layer in self.camera],
            None if self.condition is None else self.condition[pick],
        )

    def silent(self) -> "Batch":
        """The same rows, which write nothing to the cache."""
        return self._replace(memory=self.memory.silent())


class Owed(NamedTuple):
    """A chunk whose frames are out but whose keys and values are not in the cache yet.

    batch: its one row; latents: (1, C, T, h, w), clean.
    """

    batch: Batch
    latents: Tensor


def joined(batches: Sequence[Batch]) -> Batch:
    """One batch of all rows, in order. Earlier rows write the cache first, so a slot's chunks stand in theirs."""
    if len(batches) == 1:
        return batches[0]
    conditions = [batch.condition for batch in batches]
    return Batch(
        CacheView.joined([batch.memory for batch in batches]),
        joined_text([batch.text for batch in batches]),
        batches[0].camera
        and [_joined_terms(CameraTerms, layer) for layer in zip(*(b.camera for b in batches), strict=True)],
        None if conditions[0] is None else torch.cat(conditions),
    )


def joined_text(prompts: Sequence[list[TextTerms]]) -> list[TextTerms]:
    """The text terms of several rows, layer by layer."""
    if len(prompts) == 1:
        return prompts[0]
    return [_joined_terms(TextTerms, layer) for layer in zip(*prompts, strict=True)]


def joined_times(times: Sequence[TimeTerms]) -> TimeTerms:
    """Time terms of one row each as one of all."""
    return times[0] if len(times) == 1 else _joined_terms(TimeTerms, times)


def _joined_terms(kind, rows):
    return kind(*(torch.cat(parts) for parts in zip(*rows, strict=True)))
