"""Whole checkpoints in every public layout, from the command line's words to a chunk of video."""

import io
import shutil

import public_checkpoint
import pytest
import torch
from PIL import Image

from pipeline.chunk import SessionSpec
from pipeline.engine import Engine
from pipeline.load import _random_transformer, load_parts, load_wan, plan_wan
from pipeline.presets import at_precision

CPU = torch.device("cpu")
SIZES = {"vae": public_checkpoint.VAE, "text": public_checkpoint.UMT5}


def picture():
    data = io.BytesIO()
    Image.new("RGB", (48, 32), "teal").save(data, "PNG")
    return data.getvalue()


@pytest.mark.parametrize("layout", public_checkpoint.LAYOUTS)
def test_a_checkpoint_in_every_public_layout_makes_video(tmp_path, layout):
    written = public_checkpoint.write(tmp_path, layout)
    parts = load_wan(plan_wan(written.preset, written.weights, written.parts, written.lora, **SIZES), CPU)
    ours = parts.transformer.state_dict()
    assert ours.keys() == written.transformer.keys()
    for name, tensor in written.transformer.items():
        assert torch.equal(ours[name], tensor), name
    engine = Engine(written.preset, parts, slots=1)
    image = picture() if written.preset.image == "channels" else None
    engine.open(SessionSpec("one", "a walk in the woods", 7, image))
    (chunk,) = engine.step()
    assert chunk.frames.shape == (written.preset.first_chunk_frames, 32, 48, 3)


def test_what_is_missing_in_every_part_is_said_at_once(tmp_path):
    written = public_checkpoint.write(tmp_path, "lingbot-world-fast")
    (written.weights / "Wan2.1_VAE.pth").unlink()
    shutil.rmtree(written.weights / "google")
    with pytest.raises(ValueError) as error:
        plan_wan(written.preset, written.weights, **SIZES)
    message = str(error.value)
    assert f"the VAE is missing: there is no {written.weights}/Wan2.1_VAE.pth" in message
    assert "the tokenizer is missing" in message and "--parts names a folder that has it" in message
    assert "text encoder" not in message and "\n" not in message


def test_parts_may_come_from_a_folder_in_another_layout(tmp_path):
    written = public_checkpoint.write(tmp_path, "self-forcing")
    (tmp_path / "other").mkdir()
    diffusers = public_checkpoint.write(tmp_path / "other", "diffusers").weights
    plan = plan_wan(written.preset, written.weights, diffusers, **SIZES)
    assert plan.vae.source == diffusers / "vae" / "diffusion_pytorch_model.safetensors"
    assert plan.tokenizer == diffusers / "tokenizer"


def test_parts_beside_a_file_are_found(tmp_path):
    written = public_checkpoint.write(tmp_path, "self-forcing")
    beside = shutil.move(written.weights, written.parts)
    assert plan_wan(written.preset, beside, **SIZES).tokenizer == written.parts / "google" / "umt5-xxl"


@pytest.mark.parametrize(("weights", "preset"), [(None, "lingbot-world-fast"), ("random", "lingbot-world-fast")])
def test_parts_without_a_checkpoint_are_a_mistake_that_is_said(weights, preset):
    with pytest.raises(ValueError, match="--parts goes with --weights that are a public checkpoint"):
        load_parts(public_checkpoint.small(preset), weights, CPU, parts="/tmp")


def test_the_progress_bar_counts_every_byte_and_shows_only_on_a_terminal(tmp_path, capsys):
    written = public_checkpoint.write(tmp_path, "v2-14b")
    plan = plan_wan(written.preset, written.weights, **SIZES)
    counted = []
    plan.transformer.load(torch.float32, CPU, counted.append)
    assert sum(counted) == plan.transformer.nbytes
    load_wan(plan, CPU)
    assert capsys.readouterr().err == ""


def test_a_checkpoint_of_another_size_is_refused_by_its_config(tmp_path):
    written = public_checkpoint.write(tmp_path, "lingbot-world-fast")
    other = public_checkpoint.find_preset("lingbot-world-fast")
    with pytest.raises(ValueError) as error:
        plan_wan(other, written.weights, **SIZES)
    message = str(error.value)
    assert "lingbot_world_fast/config.json contradicts the preset lingbot-world-fast" in message
    assert "dim 24, not 5120" in message and "num_layers 2, not 40" in message


def test_random_weights_in_fp8_are_the_plain_ones_quantized():
    preset = public_checkpoint.small("lingbot-world-v2-1.3b")
    plain, eight = (_random_transformer(at_precision(preset, precision), CPU) for precision in ("bf16", "fp8"))
    ours, theirs = eight.blocks[1].ffn[0], plain.blocks[1].ffn[0]
    assert ours.weight.dtype == torch.float8_e4m3fn and torch.equal(ours.bias, theirs.bias)
    assert (ours.weight.float() * ours.weight_scale - theirs.weight).norm() / theirs.weight.norm() < 0.04
