"""A viewer's picture as the beginning of a stream.

C latent channels, T latent frames, h w latent height and width, H W picture height and width in pixels.
"""

import io

import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from pipeline.vae import StreamingEncoder

MAX_IMAGE_PIXELS = 64_000_000
MASK_CHANNELS = 4
GROUP = 4
"""Video frames in a latent frame after the first."""


def read_image(data: bytes, height: int, width: int) -> Tensor:
    """Decode, turn upright, flatten transparency onto black, fill and crop to the middle: (3, H, W) in [-1, 1].

    Raises ValueError, with what would be right, for anything that is not a picture of at most
    MAX_IMAGE_PIXELS pixels.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            _check_size(image)
            upright = ImageOps.exif_transpose(image).convert("RGBA")
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"the image cannot be read ({error}); send a PNG, JPEG or WebP picture") from None
    flat = Image.alpha_composite(Image.new("RGBA", upright.size, "black"), upright).convert("RGB")
    fitted = ImageOps.fit(flat, (width, height), Image.Resampling.LANCZOS)
    pixels = torch.frombuffer(bytearray(fitted.tobytes()), dtype=torch.uint8)
    return pixels.unflatten(0, (height, width, 3)).movedim(-1, 0).float() / 127.5 - 1


def _check_size(image: Image.Image) -> None:
    pixels = image.width * image.height
    if pixels > MAX_IMAGE_PIXELS:
        raise ValueError(
            f"the image has {image.width} x {image.height} pixels; "
            f"at most {MAX_IMAGE_PIXELS // 10**6} million are taken"
        )


class ImageConditioning:
    """The extra input channels of an image-to-video model, chunk by chunk: 4 of mask, then C of image latents.

    The reference encodes the picture followed by zero frames to the clip's end. The encoder is causal
    with a bounded memory, so after some latent frames its output repeats; from there on this keeps
    the last one and encodes nothing more.
    """

    def __init__(self, encoder: StreamingEncoder, image: Tensor):
        """image: (3, H, W) in [-1, 1]."""
        self._encoder = encoder
        self._zeros = torch.zeros_like(image).unsqueeze(1).repeat(1, GROUP, 1, 1)
        encoder.reset()
        self._latest = encoder.encode(image.unsqueeze(1))
        self._frame = 0
        self._settled = False

    @property
    def settled(self) -> bool:
        """From here on every latent frame is the same."""
        return self._settled

    def chunk(self, frames: int) -> Tensor:
        """The next `frames` latent frames: (MASK_CHANNELS + C, T, h, w)."""
        return torch.cat([self._next() for _ in range(frames)], dim=1)

    def _next(self) -> Tensor:
        mask = torch.zeros_like(self._latest[:1]).expand(MASK_CHANNELS, -1, -1, -1)
        if self._frame == 0:
            mask = torch.ones_like(mask)
        elif not self._settled:
            following = self._encoder.encode(self._zeros)
            # A comparison on the host, but only in the first chunks of a session.
            self._settled = torch.equal(following, self._latest)
            self._latest = following
        self._frame += 1
        return torch.cat((mask, self._latest))
