"""A viewer's picture as the beginning of a stream.

C latent channels, T latent frames, h w latent height and width, H W picture height and width in pixels.
"""

import io
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from pipeline.vae import StillEncoder

MAX_IMAGE_BYTES = 32 * 2**20
MAX_IMAGE_PIXELS = 64_000_000
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
"""What a browser or a phone sends. Pillow's other readers are old, and one of them starts a program."""
MASK_CHANNELS = 4


def read_file(path: str | Path) -> bytes:
    """A picture's file as it is. Raises ValueError for one that cannot be read or has more than MAX_IMAGE_BYTES."""
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_IMAGE_BYTES + 1)
    except OSError as error:
        raise ValueError(f"the image {path} cannot be opened: {error.strerror}") from None
    _check_bytes(data)
    return data


def read_image(data: bytes, height: int, width: int) -> Tensor:
    """Decode, turn upright, fill and crop to the middle, flatten transparency onto black: (3, H, W) in [-1, 1].

    The first picture of an animation is taken. Raises ValueError, with what would be right, for anything that is not a
    PNG, JPEG, WebP, GIF or BMP picture of at most MAX_IMAGE_BYTES and MAX_IMAGE_PIXELS.
    """
    _check_bytes(data)
    with warnings.catch_warnings():
        # Pillow warns of odd metadata and of sizes that _check_pixels refuses; neither is for the server's log.
        warnings.simplefilter("ignore")
        fitted = ImageOps.fit(_decode(data), (width, height), Image.Resampling.LANCZOS)
    if fitted.mode == "RGBA":
        fitted = Image.alpha_composite(Image.new("RGBA", fitted.size, "black"), fitted).convert("RGB")
    pixels = torch.frombuffer(bytearray(fitted.tobytes()), dtype=torch.uint8)
    return pixels.unflatten(0, (height, width, 3)).movedim(-1, 0).float() / 127.5 - 1


def _check_bytes(data: bytes) -> None:
    if not data:
        raise ValueError("the image is empty; send a PNG, JPEG or WebP picture")
    if len(data) > MAX_IMAGE_BYTES:
        raise ValueError(f"the image has more than {MAX_IMAGE_BYTES // 2**20} MB; send a smaller one")


def _decode(data: bytes) -> Image.Image:
    """Upright, in RGB, or RGBA where something is transparent."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_pixels(image)
            image.load()
            return _colours(_upright(image))
    except _Refused as error:
        raise ValueError(str(error)) from None
    except Image.DecompressionBombError:
        raise ValueError(f"the image has too many pixels; {_AT_MOST}") from None
    except UnidentifiedImageError:
        raise ValueError("the image is no picture that can be read; send a PNG, JPEG or WebP picture") from None
    except Exception as error:  # on damaged bytes decoders raise whatever they come to
        raise ValueError(f"the image is damaged ({error or type(error).__name__}); send it again") from None


class _Refused(Exception):
    """A picture that is as it should be, but not for us."""


_AT_MOST = f"at most {MAX_IMAGE_PIXELS // 10**6} million are taken"


def _check_pixels(image: Image.Image) -> None:
    if image.width * image.height > MAX_IMAGE_PIXELS:
        raise _Refused(f"the image has {image.width} x {image.height} pixels; {_AT_MOST}")


def _upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF data say; a picture whose EXIF data are damaged is taken as it lies."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # the picture itself has been decoded: whatever this is, it is the metadata
        return image


def _colours(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits of grey, which convert() would cut off at 255
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    return image.convert("RGBA" if image.has_transparency_data else "RGB")


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
