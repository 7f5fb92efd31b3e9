"""A viewer's picture: whatever is sent becomes a tensor or a sentence; and its latents, chunk by chunk."""

import dataclasses
import gc
import io
import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline import engine
from pipeline.chunk import SessionSpec
from pipeline.conditioning import MASK_CHANNELS, ImageConditioning, read_image
from pipeline.load import Parts, RandomText
from pipeline.picture import read_file
from pipeline.presets import PRESETS, find_preset
from pipeline.text_encoder import PromptCache
from pipeline.transformer import Transformer, TransformerConfig
from pipeline.vae import WanVAE, WanVAEConfig
from stream.__main__ import main

RED, BLUE = (255, 0, 0), (0, 0, 255)
CLIP = 81


@pytest.fixture(autouse=True)
def no_warnings():
    gc.collect()  # what earlier tests left open warns here, and not of a picture
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def halves(mode: str = "RGB", left=RED, right=BLUE, size=(64, 32)) -> Image.Image:
    image = Image.new(mode, size, left)
    image.paste(right, (size[0] // 2, 0, *size))
    return image


def colour(picture: torch.Tensor, y: int, x: int) -> list[int]:
    return ((picture[:, y, x] + 1) * 127.5).round().int().tolist()


def close(ours, theirs, by: int = 12) -> bool:
    return all(abs(a - b) <= by for a, b in zip(ours, theirs, strict=True))


def png_of_size(width: int, height: int) -> bytes:
    """A PNG that says it is as large as that, with next to nothing in it."""

    def part(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", header) + part(b"IDAT", zlib.compress(b"\0")) + part(b"IEND", b"")


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG", "GIF", "BMP"])
def test_a_picture_becomes_numbers_from_minus_one_to_one(kind):
    options = {"quality": 95} if kind in ("JPEG", "WEBP") else {}
    picture = read_image(encoded(halves(), kind, **options), 32, 64)
    assert picture.shape == (3, 32, 64) and picture.dtype == torch.float32
    assert close(colour(picture, 16, 8), RED) and close(colour(picture, 16, 56), BLUE)


@pytest.mark.parametrize(
    "orientation, red_at", [(1, (16, 4)), (2, (16, 28)), (3, (16, 28)), (6, (4, 16)), (8, (28, 16))]
)
def test_a_phones_picture_stands_upright(orientation, red_at):
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = read_image(encoded(halves(size=(32, 32)), "JPEG", exif=exif, quality=95), 32, 32)
    assert close(colour(picture, *red_at), RED)


def test_damaged_exif_data_leave_the_picture_as_it_lies():
    data = encoded(halves(), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x05" + bytes(range(40)), quality=95)
    assert close(colour(read_image(data, 32, 64), 16, 8), RED)


def test_what_is_transparent_becomes_black():
    image = halves("RGBA", (*RED, 0), (*BLUE, 255))
    picture = read_image(encoded(image), 32, 64)
    assert colour(picture, 16, 8) == [0, 0, 0] and colour(picture, 16, 56) == list(BLUE)
    half = read_image(encoded(Image.new("RGBA", (8, 8), (255, 255, 255, 128))), 16, 16)
    assert close(colour(half, 4, 4), (128, 128, 128), by=1)


def test_a_palette_with_a_transparent_colour_is_read():
    image = Image.new("P", (64, 32), 0)
    image.putpalette([*RED, *BLUE])
    image.paste(1, (32, 0, 64, 32))
    for transparency in (0, bytes([0, 255])):
        picture = read_image(encoded(image, transparency=transparency), 32, 64)
        assert colour(picture, 16, 8) == [0, 0, 0] and colour(picture, 16, 56) == list(BLUE)


@pytest.mark.parametrize("mode, left", [("L", 200), ("LA", (200, 255)), ("1", 1)])
def test_grey_and_black_and_white_are_read(mode, left):
    data = encoded(Image.new(mode, (8, 8), left))
    assert colour(read_image(data, 16, 16), 8, 8) == [255 if mode == "1" else 200] * 3


def test_sixteen_bits_of_grey_keep_their_shades():
    shades = np.array([[0x2000, 0x8000, 0xE000]], dtype=np.uint16).repeat(16, axis=1).repeat(16, axis=0)
    picture = read_image(encoded(Image.fromarray(shades)), 16, 48)
    assert [colour(picture, 8, x)[0] for x in (4, 24, 44)] == [0x20, 0x80, 0xE0]


def test_a_printers_jpeg_has_the_right_colours():
    image = halves("CMYK", (0, 255, 255, 0), (255, 255, 0, 0))
    picture = read_image(encoded(image, "JPEG", quality=95), 32, 64)
    assert close(colour(picture, 16, 8), RED) and close(colour(picture, 16, 56), BLUE)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_the_first_picture_of_an_animation_is_taken(kind):
    rest = [Image.new("RGB", (64, 32), "green")] * 2
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(halves(), kind, save_all=True, append_images=rest, **options)
    assert close(colour(read_image(data, 32, 64), 16, 8), RED)


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (20_000, 10), (20_000, 1000)])
def test_any_shape_fills_the_picture(size):
    picture = read_image(encoded(Image.new("RGB", size, RED)), 48, 80)
    assert picture.shape == (3, 48, 80)
    assert all(close(colour(picture, y, x), RED, by=0) for y in (0, 47) for x in (0, 79))


def test_the_middle_is_what_is_kept():
    wide = Image.new("RGB", (300, 30), BLUE)
    wide.paste(RED, (120, 0, 180, 30))
    picture = read_image(encoded(wide), 32, 64)
    assert close(colour(picture, 16, 2), RED) and close(colour(picture, 16, 61), RED)


@pytest.mark.parametrize("size", [(8001, 8000), (12_000, 8000), (50_000, 50_000)])
def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(size):
    """Pillow accepts the first, would warn of the second and raises for the third."""
    with pytest.raises(ValueError, match="at most 64 million are taken"):
        read_image(png_of_size(*size), 32, 64)


def test_a_bomb_of_compressed_text_is_refused():
    data = bytearray(png_of_size(8, 8))
    text = b"zTXt" + b"comment\0\0" + zlib.compress(bytes(100 * 2**20))
    part = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
    data[33:33] = part
    with pytest.raises(ValueError, match="the image is"):
        read_image(bytes(data), 32, 64)


NOT_PICTURES = {
    "empty": (b"", "the image is empty"),
    "text": (b"a text file named .png", "no picture that can be read"),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "no picture that can be read"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "no picture that can be read"),
    "head of a png": (b"\x89PNG\r\n\x1a\n", "the image is"),
    "no data": (png_of_size(8, 8), "the image is damaged"),
    "no size": (png_of_size(0, 8), "the image is"),
    "cut jpeg": (encoded(Image.effect_noise((64, 64), 50), "JPEG")[:900], "the image is damaged"),
    "cut webp": (encoded(Image.effect_noise((64, 64), 50), "WEBP")[:900], "the image is"),
    "cut gif": (encoded(Image.effect_noise((64, 64), 50), "GIF")[:900], "the image is damaged"),
}


@pytest.mark.parametrize("name", NOT_PICTURES)
def test_what_is_no_picture_is_refused_in_one_sentence(name):
    data, words = NOT_PICTURES[name]
    with pytest.raises(ValueError, match=words) as caught:
        read_image(data, 32, 64)
    assert "object at" not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_damaged_bytes_give_a_picture_or_a_sentence_and_nothing_else(kind):
    data = encoded(Image.effect_noise((40, 30), 60).convert("RGB"), kind)
    random = np.random.default_rng(0)
    for _ in range(150):
        spoiled = bytearray(data)
        for at in random.integers(0, len(data), random.integers(1, 12)):
            spoiled[at] = random.integers(256)
        try:
            assert read_image(bytes(spoiled), 16, 32).shape == (3, 16, 32)
        except ValueError as error:
            assert str(error).startswith("the image ")


def test_a_file_that_is_too_large_or_not_there_gets_a_sentence(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(halves()))
    assert read_file(path) == path.read_bytes()
    monkeypatch.setattr("pipeline.picture.MAX_IMAGE_BYTES", 2**6)
    for read in (lambda: read_file(path), lambda: read_image(path.read_bytes(), 32, 64)):
        with pytest.raises(ValueError, match="MB; send a smaller one"):
            read()
    for wrong in (tmp_path, tmp_path / "nothing.png"):
        with pytest.raises(ValueError, match="cannot be opened"):
            read_file(wrong)


@pytest.fixture(scope="module")
def vae() -> WanVAE:
    torch.manual_seed(0)
    return WanVAE(WanVAEConfig(dim=8)).eval().requires_grad_(False)


@pytest.mark.parametrize("frames, chunk", [(CLIP, 3), (CLIP, 4), (201, 3)])
@torch.inference_mode()
def test_chunk_by_chunk_it_is_the_whole_clip_encoded_at_once(vae, frames, chunk):
    image = torch.rand(3, 32, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1
    clip = torch.zeros(3, frames, 32, 48)
    clip[:, 0] = image
    whole = vae.encoder().encode(clip)  # (C, 21, h, w) for the reference's 81 frames
    still = ImageConditioning(vae.encoder(), image)
    chunks = torch.cat([still.frames(first, chunk) for first in range(0, whole.shape[1], chunk)], dim=1)
    mask, latents = chunks[:, : whole.shape[1]].split([MASK_CHANNELS, 16])
    assert (latents - whole).abs().max() < 1e-4
    assert (mask[:, 0] == 1).all() and (mask[:, 1:] == 0).all()


@torch.inference_mode()
def test_any_chunk_can_be_asked_for_at_any_time(vae):
    still = ImageConditioning(vae.encoder(), torch.rand(3, 32, 48))
    whole = still.frames(0, 42)
    for first in (39, 27, 0, 12):
        assert torch.equal(still.frames(first, 3), whole[:, first : first + 3])
    assert torch.equal(still.frames(10**6, 3), whole[:, -1:].expand(-1, 3, -1, -1))


@pytest.fixture
def world(vae, monkeypatch) -> engine.Engine:
    """A model of pictures at small width with random weights, under a preset's name of its own."""
    config = TransformerConfig(
        dim=48, ffn_dim=96, heads=4, layers=2, in_channels=36, text_dim=16, text_rows=16, camera_channels=384
    )
    fast = find_preset("lingbot-world-fast")
    preset = dataclasses.replace(fast, name="small-fast", transformer=config, steps=fast.steps[:2], height=32, width=48)
    torch.manual_seed(0)
    parts = Parts(Transformer(config).eval().requires_grad_(False), vae, PromptCache(RandomText(16)))
    monkeypatch.setitem(PRESETS, preset.name, preset)
    monkeypatch.setattr(engine, "load_parts", lambda *names: parts)
    return engine.build(preset.name, "random", slots=2, schedule="turns", context=9)


def test_a_session_continues_its_own_picture_past_the_settled_prefix(world):
    for name, left in (("red", RED), ("blue", BLUE)):
        world.open(SessionSpec(name, "a meadow", 1, encoded(halves(left=left))))
    red, blue = (chunk.frames for chunk in world.step())
    assert not np.array_equal(red, blue)
    world.close("blue")
    assert [len(world.step()[0].frames) for _ in range(10)] == [12] * 10
    settled = world._slots.find("red").image.frames(30, 3)
    assert torch.equal(settled[:, 0], settled[:, 2])


def test_a_picture_that_cannot_be_read_takes_no_place(world):
    for data, words in ((b"text", "no picture"), (None, "give it one")):
        with pytest.raises(ValueError, match=words):
            world.open(SessionSpec("a", "a meadow", 1, data))
    for name in ("a", "b"):
        world.open(SessionSpec(name, "a meadow", 1, encoded(halves())))


def test_generate_begins_with_the_picture_of_the_command_line(world, tmp_path, capsys):
    picture, text, video = tmp_path / "a.png", tmp_path / "text.png", tmp_path / "a.mp4"
    picture.write_bytes(encoded(halves()))
    text.write_text("not a picture")
    command = ["generate", "--preset", "small-fast", "--weights", "random", "--device", "cpu", "--prompt", "a meadow"]
    command += ["--frames", "21", "--seed", "1", "-o", str(video)]
    assert main([*command, "--image", str(picture), "--context", "7"]) == 0
    assert "21 frames" in capsys.readouterr().out and video.stat().st_size > 0
    for wrong, words in (
        (["--image", str(text)], "the image is no picture that can be read"),
        ([], "continues a picture: give it one"),
        (["--image", str(picture), "--context", "4"], "needs at least 6"),
    ):
        assert main([*command, *wrong]) == 2
        assert words in capsys.readouterr().err
