"""A world of the tiny preset that begins with somebody's picture."""

import functools
import io

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.chunk import Control, SessionSpec
from pipeline.engine import Engine
from pipeline.load import load_parts
from pipeline.presets import find_preset
from pipeline.tiny.landscape import HOURS, PLACES, WEATHERS
from pipeline.tiny.load import load_tiny
from pipeline.tiny.renderer import Renderer
from pipeline.tiny.scene import Scene, sentence, understand

DESERT_AT_DUSK = Scene(list(PLACES).index("desert"), 0, list(HOURS).index("dusk"), list(WEATHERS).index("clear"))
POSE = torch.tensor([[5.0, 3.0, 2.0, 0.0]])


renderer = functools.cache(Renderer)


def drawn(scene: Scene) -> Image.Image:
    picture = renderer().render(POSE, torch.tensor([scene]), torch.zeros(1).long(), 192, 320, oversample=1)[0]
    return Image.fromarray(picture.mul(255).byte().movedim(0, -1).numpy())


def png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def engine() -> Engine:
    preset = find_preset("tiny")
    return Engine(preset, load_parts(preset, None, torch.device("cpu")), slots=1)


def begun(engine: Engine, picture: bytes, prompt: str = "", chunks: int = 1) -> list:
    engine.open(SessionSpec("a", prompt, 1, picture))
    try:
        return [engine.step()[0] for _ in range(chunks)]
    finally:
        engine.close("a")


def test_a_picture_of_the_world_is_gone_on_with_as_what_it_shows(engine):
    chunk = begun(engine, png(drawn(DESERT_AT_DUSK)))[0]
    assert chunk.scene == sentence(DESERT_AT_DUSK)
    shown = Image.fromarray(chunk.frames[-1]).resize((20, 12), Image.Resampling.BOX)
    given = drawn(DESERT_AT_DUSK).resize((20, 12), Image.Resampling.BOX)
    assert np.abs(np.asarray(shown, float) - np.asarray(given, float)).mean() < 12


def test_what_the_prompt_names_counts_more_than_the_picture(engine):
    chunk = begun(engine, png(drawn(DESERT_AT_DUSK)), "at night")[0]
    assert understand(chunk.scene).scene == DESERT_AT_DUSK._replace(hour=list(HOURS).index("night"))


def test_without_a_prompt_nothing_is_told_to_be_not_understood(engine):
    chunk = begun(engine, png(drawn(DESERT_AT_DUSK)))[0]
    assert (chunk.unknown_words, chunk.guessed_words) == ((), ())


def test_an_engine_that_cannot_name_pictures_asks_for_words():
    preset = find_preset("tiny")
    blind = Engine(preset, load_parts(preset, None, torch.device("cpu"))._replace(recognise=None), slots=1)
    with pytest.raises(ValueError, match="tiny does not know what a picture shows: say in a few words"):
        begun(blind, png(drawn(DESERT_AT_DUSK)))
    assert len(begun(blind, png(drawn(DESERT_AT_DUSK)), "at night")) == 1, "and its slot is free"


def test_most_pictures_of_the_world_are_recognised():
    world = load_tiny()
    scenes = [Scene(place, 0, (place + turn) % len(HOURS), 0) for place in range(len(PLACES)) for turn in (0, 2)]
    latents = [world.vae.encoder().encode(_still(drawn(scene))) for scene in scenes]
    named = [understand(world.recogniser.name(latent[:, 0])).scene for latent in latents]
    assert sum(name.place == scene.place for name, scene in zip(named, scenes, strict=True)) >= 0.9 * len(scenes)
    assert sum(name.hour == scene.hour for name, scene in zip(named, scenes, strict=True)) >= 0.9 * len(scenes)


def _still(picture: Image.Image) -> torch.Tensor:
    pixels = torch.from_numpy(np.asarray(picture).copy()).float().div(127.5).sub(1)
    return pixels.movedim(-1, 0)[:, None].expand(-1, 4, -1, -1)


def test_any_photograph_is_gone_on_with_in_its_colours(engine):
    """A blue and a yellow one, which nobody has seen before, at first and two seconds later."""
    means = {}
    for name, colour in {"blue": (70, 110, 190), "yellow": (225, 180, 90)}.items():
        grain = np.random.default_rng(0).normal(0, 20, (192, 320, 3))
        photograph = Image.fromarray((np.array(colour) + grain).clip(0, 255).astype(np.uint8))
        chunks = begun(engine, png(photograph), chunks=9)
        means[name] = [chunk.frames[-1].reshape(-1, 3).mean(0) for chunk in (chunks[0], chunks[-1])]
    for early_or_late in (0, 1):
        blue, yellow = (means[name][early_or_late] for name in ("blue", "yellow"))
        assert blue[2] - blue[0] > yellow[2] - yellow[0]


def test_a_resumed_world_still_goes_on_as_its_picture(engine):
    engine.open(SessionSpec("a", "", 1, png(drawn(DESERT_AT_DUSK))))
    try:
        engine.step()
        engine.control("a", Control(1, frozenset("w")))
        kept = engine.snapshot("a")
        expected = engine.step()[0]
    finally:
        engine.close("a")
    engine.resume(kept)
    try:
        resumed = engine.step()[0]
    finally:
        engine.close("a")
    assert resumed.scene == sentence(DESERT_AT_DUSK)
    assert np.array_equal(resumed.frames, expected.frames)
