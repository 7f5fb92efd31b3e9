"""A viewer's picture as bytes, and the RGB picture of the world's size that it becomes. Pillow alone, no torch.

`python -m pipeline.picture HEIGHT WIDTH` reads the one and writes the other as PNG, in a process that a broken decoder
takes along and no one else: the server gives it what strangers send.
"""

import argparse
import io
import resource
import sys
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

MAX_IMAGE_BYTES = 32 * 2**20
MAX_IMAGE_PIXELS = 64_000_000
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
"""What a browser or a phone sends. Pillow's other readers are old, and one of them starts a program."""

MEMORY_BYTES, PROCESSOR_SECONDS = 2 * 2**30, 20
"""What the process of its own may take: a picture of MAX_IMAGE_PIXELS needs about half of it."""


def read_file(path: str | Path) -> bytes:
    """A picture's file as it is. Raises ValueError for one that cannot be read or has more than MAX_IMAGE_BYTES."""
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_IMAGE_BYTES + 1)
    except OSError as error:
        raise ValueError(f"the image {path} cannot be opened: {error.strerror}") from None
    _check_bytes(data)
    return data


def fitted(data: bytes, height: int, width: int) -> Image.Image:
    """Decode, turn upright, fill and crop to the middle, flatten transparency onto black: RGB, `width` x `height`.

    The first picture of an animation is taken. A picture that has this size already stays as it is. Raises ValueError,
    with what would be right, for anything that is not a PNG, JPEG, WebP, GIF or BMP picture of at most MAX_IMAGE_BYTES
    and MAX_IMAGE_PIXELS.
    """
    _check_bytes(data)
    with warnings.catch_warnings():
        # Pillow warns of odd metadata and of sizes that _check_pixels refuses; neither is for the server's log.
        warnings.simplefilter("ignore")
        image = ImageOps.fit(_decode(data), (width, height), Image.Resampling.LANCZOS)
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image).convert("RGB")
    return image


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


def main(argv: list[str] | None = None) -> int:
    """Fit the picture on stdin and write it to stdout as PNG; exit code 2, and a sentence on stderr, for what is none.

    Nothing of the file but the picture itself is written: no place where it was taken, no name of a camera.
    """
    parser = argparse.ArgumentParser(prog="python -m pipeline.picture", description=main.__doc__)
    parser.add_argument("height", type=int)
    parser.add_argument("width", type=int)
    options = parser.parse_args(argv)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (PROCESSOR_SECONDS, PROCESSOR_SECONDS))
    try:
        image = fitted(sys.stdin.buffer.read(MAX_IMAGE_BYTES + 1), options.height, options.width)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    image.info = {}
    image.save(sys.stdout.buffer, "PNG")
    return 0


if __name__ == "__main__":
    sys.exit(main())
