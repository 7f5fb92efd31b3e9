"""A viewer's picture as the beginning of a stream.

C latent channels, T latent frames, h w latent height and width, H W picture height and width in pixels.
"""

import torch
from torch import Tensor

from pipeline.picture import fitted
from pipeline.vae import StillEncoder

MASK_CHANNELS = 4


def read_image(data: bytes, height: int, width: int) -> Tensor:
    """A picture as pipeline.picture.fitted makes it, in numbers: (3, H, W) in [-1, 1]. Raises ValueError as that."""
    pixels = torch.frombuffer(bytearray(fitted(data, height, width).tobytes()), dtype=torch.uint8)
    return pixels.unflatten(0, (height, width, 3)).movedim(-1, 0).float() / 127.5 - 1


class ImageConditioning:
    """The extra input channels of an image-to-video model, chunk by chunk: 4 of mask, then C of image latents.

    The reference encodes the picture followed by zero frames to the clip's end. The encoder is causal with a bounded
    memory, so from some latent frame on its output repeats (see pipeline.vae): what comes before that is made here at
    once, and any chunk of the session is a slice of it.
    """

    def __init__(self, encoder: StillEncoder, image: Tensor):
        """image: (3, H, W) in [-1, 1]."""
        latents = encoder.encode_still(image)
        mask = torch.zeros_like(latents[:1]).repeat(MASK_CHANNELS, 1, 1, 1)
        mask[:, 0] = 1
        self._channels = torch.cat((mask, latents))

    def frames(self, first: int, count: int) -> Tensor:
        """The `count` latent frames from the stream's latent frame `first`: (MASK_CHANNELS + C, T, h, w)."""
        prefix = self._channels[:, first : first + count]
        settled = self._channels[:, -1:].expand(-1, count - prefix.shape[1], -1, -1)
        return torch.cat((prefix, settled), dim=1)
