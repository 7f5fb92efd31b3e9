"""What self-attention sees in training: all chunks of a clip at once, each just what the stream would show it.

Two streams go through the transformer side by side: the clean clip, which plays the cache, and the noisy one, whose
chunks are denoised. A chunk is one latent frame.

B clips, N chunks a clip, L tokens a chunk, H heads, D head width; rows of the batch are (stream, clip, chunk).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.transformer import rope_angles

STREAMS = 2


@dataclass(frozen=True, eq=False)
class Alone:
    """A Memory (see pipeline.transformer) of chunks without any past, one a row."""

    rope: tuple[Tensor, Tensor]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q, k, v: (B*N, L, H, D)."""
        return F.scaled_dot_product_attention(*(x.movedim(1, 2) for x in (q, k, v))).movedim(1, 2)


def alone(rows: int, grid: tuple[int, int], head_width: int, device: torch.device) -> Alone:
    """The Memory of so many chunks; grid: rows and columns of the tokens."""
    beginning = torch.zeros(1, 1, dtype=torch.float64, device=device)
    return Alone(tuple(a.repeat(rows, 1, 1) for a in rope_angles(beginning, *grid, head_width, device)))


@dataclass(frozen=True, eq=False)
class TeacherForcing:
    """A Memory (see pipeline.transformer) of whole clips.

    mask: (B, 1, 2*N*L, 2*N*L) bool, True where a query may look; rope as the transformer wants it for all rows.
    """

    clips: int
    chunks: int
    mask: Tensor
    rope: tuple[Tensor, Tensor]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q, k, v: (2*B*N, L, H, D)."""
        q, k, v = (self._by_clip(x) for x in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask)  # (B, H, 2*N*L, D)
        return out.movedim(1, 2).unflatten(1, (STREAMS, self.chunks, -1)).movedim(1, 0).flatten(0, 2)

    def _by_clip(self, x: Tensor) -> Tensor:
        """(2*B*N, L, H, D) to (B, H, 2*N*L, D)."""
        return x.unflatten(0, (STREAMS, self.clips, self.chunks)).movedim(0, 1).flatten(1, 3).movedim(1, 2)


def teacher_forcing(
    history: Tensor, chunks: int, window: int, grid: tuple[int, int], head_width: int
) -> TeacherForcing:
    """The Memory of len(history) clips of `chunks` chunks, `window` of which a chunk sees, itself included.

    history: (B,) bool, False for clips that are to be made without any past. grid: rows and columns of the tokens.
    """
    device = history.device
    tokens = grid[0] * grid[1]
    masks = torch.stack([_mask(chunks, window, tokens, past, device) for past in (False, True)])
    positions = torch.arange(chunks, dtype=torch.float64, device=device)[:, None]
    rows = STREAMS * len(history)
    cos, sin = (a.repeat(rows, 1, 1) for a in rope_angles(positions, *grid, head_width, device))
    return TeacherForcing(len(history), chunks, masks[history.long()][:, None], (cos, sin))


def _mask(chunks: int, window: int, tokens: int, past: bool, device: torch.device) -> Tensor:
    index = torch.arange(chunks, device=device)
    back = index[:, None] - index[None, :]
    own = back == 0
    before = (back > 0) & (back < window) & past
    nothing = torch.zeros_like(own)
    clean = torch.cat((own | before, nothing), dim=1)
    noisy = torch.cat((before, own), dim=1)
    mask = torch.cat((clean, noisy))
    return mask.repeat_interleave(tokens, 0).repeat_interleave(tokens, 1)
