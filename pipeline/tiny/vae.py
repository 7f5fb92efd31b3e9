"""The small world's VAE: four pictures to one latent frame and back, quick enough for two CPU cores.

The Wan VAE's class costs some 50 ms a frame there even when narrow. This one keeps its convolutions at a quarter of
the resolution and below, and treats the four pictures of a latent frame as channels.

B clips, T latent frames, h w latent height and width, H = 16h, W = 16w picture height and width; pictures in [-1, 1].
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FRAMES = 4
"""Pictures in a latent frame."""
UNSHUFFLE = 4
LATENT_CHANNELS = 32
ENCODER_WIDTHS, DECODER_WIDTHS = (48, 96, 128), (128, 96, 64)
ENCODER_BLOCKS, DECODER_BLOCKS = 2, 3
REFINED = 48
"""Channels at half the resolution, where a convolution hides the borders of the decoder's 4x4 squares."""
CRISP, CRISP_LAYERS = 24, 4
"""Channels and convolutions at full resolution, where an edge is drawn that the layers before only placed."""
GROUPS = 8


class Residual(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, width)
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.silu(self.first(F.silu(self.norm(x)))))


def _stages(widths: Sequence[int], blocks: int) -> nn.ModuleList:
    return nn.ModuleList(nn.Sequential(*(Residual(width) for _ in range(blocks))) for width in widths)


class Encoder(nn.Module):
    """Four pictures (B, 3, 4, H, W) to the mean and log variance of a latent frame, (B, 2C, h, w)."""

    def __init__(self):
        super().__init__()
        widths = ENCODER_WIDTHS
        self.stem = nn.Conv2d(3 * FRAMES * UNSHUFFLE**2, widths[0], 3, padding=1)
        self.stages = _stages(widths, ENCODER_BLOCKS)
        self.downs = nn.ModuleList(nn.Conv2d(narrow, wide, 3, stride=2, padding=1) for narrow, wide in pairwise(widths))
        self.head = nn.Conv2d(widths[-1], 2 * LATENT_CHANNELS, 3, padding=1)

    def forward(self, pictures: Tensor) -> Tensor:
        x = self.stem(F.pixel_unshuffle(pictures.flatten(1, 2), UNSHUFFLE))
        for stage, down in zip(self.stages, self.downs, strict=False):
            x = down(stage(x))
        return self.head(self.stages[-1](x))


def _crisp() -> nn.Sequential:
    """What is added to four pictures as 12 channels; nothing before it is trained."""
    channels = 3 * FRAMES
    widths = (channels, *[CRISP] * (CRISP_LAYERS - 1), channels)
    layers: list[nn.Module] = []
    for before, width in pairwise(widths):
        layers += [nn.Conv2d(before, width, 3, padding=1), nn.LeakyReLU(0.2)]
    nn.init.zeros_(layers[-2].weight)
    nn.init.zeros_(layers[-2].bias)
    return nn.Sequential(*layers[:-1])


class Decoder(nn.Module):
    """A latent frame (B, C, h, w) and what each stage saw before to four pictures (B, 3, 4, H, W).

    Without `crisp` there are no layers at full resolution, as in weights of before they were.
    """

    def __init__(self, crisp: bool = True):
        super().__init__()
        widths = DECODER_WIDTHS
        self.stem = nn.Conv2d(LATENT_CHANNELS, widths[0], 3, padding=1)
        self.pasts = nn.ModuleList(nn.Conv2d(width, width, 1) for width in widths)
        self.stages = _stages(widths, DECODER_BLOCKS)
        self.ups = nn.ModuleList(nn.Conv2d(wide, 4 * narrow, 1) for wide, narrow in pairwise(widths))
        self.head = nn.Conv2d(widths[-1], 4 * REFINED, 3, padding=1)
        self.refine = nn.Conv2d(REFINED, 3 * FRAMES * 4, 3, padding=1)
        self.crisp = _crisp() if crisp else None

    def forward(self, latent: Tensor, past: Sequence[Tensor] | None) -> tuple[Tensor, list[Tensor]]:
        """`past` is what the call before returned second, None at a stream's start."""
        x = self.stem(latent)
        present = []
        for index, stage in enumerate(self.stages):
            present.append(x)
            # A stream begins as if its first latent frame had been there before.
            x = stage(x + self.pasts[index](x if past is None else past[index]))
            if index < len(self.ups):
                x = F.pixel_shuffle(self.ups[index](x), 2)
        x = F.pixel_shuffle(self.head(F.silu(x)), 2)
        pictures = F.pixel_shuffle(self.refine(F.silu(x)), 2)
        if self.crisp is not None:
            pictures = pictures + self.crisp(pictures)
        return pictures.unflatten(1, (3, FRAMES)), present


class TinyVAE(nn.Module):
    """Weights and the latents' statistics. `decoder()` and `encoder()` give what keeps one stream's state."""

    def __init__(self, crisp: bool = True):
        super().__init__()
        self.encode_pictures = Encoder()
        self.decode_latent = Decoder(crisp)
        self.register_buffer("mean", torch.zeros(LATENT_CHANNELS))
        self.register_buffer("std", torch.ones(LATENT_CHANNELS))

    @property
    def dtype(self) -> torch.dtype:
        return self.mean.dtype

    def normalize(self, latent: Tensor) -> Tensor:
        """(B, C, h, w) as encoded to what the transformer sees."""
        return (latent - self.mean[:, None, None]) / self.std[:, None, None]

    def denormalize(self, latent: Tensor) -> Tensor:
        return latent * self.std[:, None, None] + self.mean[:, None, None]

    def decoder(self) -> "StreamingDecoder":
        return StreamingDecoder(self)

    def encoder(self) -> "StreamingEncoder":
        return StreamingEncoder(self)


class StreamingDecoder:
    """One stream's decoder; see pipeline.vae for the interface."""

    reach = len(DECODER_WIDTHS)  # a stage sees one latent frame back, and hands what it saw on to the next

    def __init__(self, vae: TinyVAE):
        self._vae = vae
        self._past: list[Tensor] | None = None

    def reset(self) -> None:
        self._past = None

    def decode(self, latent: Tensor) -> Tensor:
        """latent: (C, T, h, w), normalised. Returns (3, 4T, H, W) in [-1, 1]."""
        videos = []
        for frame in self._vae.denormalize(latent.to(self._vae.dtype).movedim(1, 0)):
            pictures, self._past = self._vae.decode_latent(frame[None], self._past)
            videos.append(pictures[0])
        return torch.cat(videos, dim=1).clamp(-1, 1)


class StreamingEncoder:
    """One stream's encoder. It keeps no state: a latent frame depends on its own four pictures."""

    def __init__(self, vae: TinyVAE):
        self._vae = vae

    def reset(self) -> None:
        pass

    def encode(self, video: Tensor) -> Tensor:
        """video: (3, 4T, H, W) in [-1, 1]. Returns (C, T, h, w), normalised. ValueError for another length."""
        if video.shape[1] % FRAMES:
            raise ValueError(f"the video has {video.shape[1]} frames; the tiny VAE takes a multiple of {FRAMES}")
        groups = video.unflatten(1, (-1, FRAMES)).movedim(1, 0)
        mean, _ = self._vae.encode_pictures(groups).chunk(2, dim=1)
        return self._vae.normalize(mean).movedim(0, 1)
