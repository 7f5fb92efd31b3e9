import json
import re

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pipeline import checkpoint, layouts
from pipeline.transformer import Transformer, TransformerConfig

SMALL = TransformerConfig(dim=24, ffn_dim=32, heads=2, layers=2, in_channels=16, text_dim=8)


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(0)
    return {name: tensor.detach() for name, tensor in Transformer(SMALL).state_dict().items()}


def load(path, dtype=torch.float32):
    return checkpoint.load_transformer(path, SMALL, dtype, "cpu")


def same(model, state):
    ours = model.state_dict()
    return ours.keys() == state.keys() and all(torch.equal(ours[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize("folder", ["lingbot_world_fast", "transformers", "."])
def test_a_sharded_folder_with_an_index_loads_from_each_public_place(tmp_path, state, folder):
    place = tmp_path / folder
    place.mkdir(exist_ok=True)
    names = sorted(state)
    shards = {"model-00001.safetensors": names[::2], "model-00002.safetensors": names[1::2]}
    for shard, members in shards.items():
        save_file({name: state[name].contiguous() for name in members}, place / shard)
    index = {"weight_map": {name: shard for shard, members in shards.items() for name in members}}
    (place / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    assert same(load(tmp_path), state)


@pytest.mark.parametrize("wrapper", ["model.", "model._fsdp_wrapped_module."])
def test_a_self_forcing_file_loads_its_ema_weights(tmp_path, state, wrapper):
    ema = {wrapper + name: tensor for name, tensor in state.items()}
    raw = {name: torch.zeros_like(tensor) for name, tensor in ema.items()}
    torch.save({"generator": raw, "generator_ema": ema}, tmp_path / "self_forcing_dmd.pt")
    assert same(load(tmp_path / "self_forcing_dmd.pt"), state)
    assert same(load(tmp_path), state)


def test_missing_unexpected_and_mis_shaped_tensors_are_one_error_that_names_all(tmp_path, state):
    broken = dict(state)
    del broken["head.modulation"], broken["blocks.1.norm3.bias"]
    broken |= {"blocks.9.extra": torch.zeros(1), "patch_embedding.bias": torch.zeros(3)}
    save_file(broken, tmp_path / "model.safetensors")
    with pytest.raises(ValueError) as error:
        load(tmp_path)
    message = str(error.value)
    for part in (
        str(tmp_path),
        "missing: blocks.1.norm3.bias, head.modulation",
        "unexpected: blocks.9.extra",
        "mis-shaped: patch_embedding.bias is (3,), not (24,)",
    ):
        assert part in message


def test_what_the_models_compute_in_float32_stays_float32(tmp_path, state):
    save_file(state, tmp_path / "model.safetensors")
    model = load(tmp_path, torch.bfloat16)
    wide = {name for name, tensor in model.state_dict().items() if tensor.dtype == torch.float32}
    assert {"head.modulation", "blocks.0.modulation", "time_projection.1.weight", "blocks.1.norm3.bias"} <= wide
    assert model.dtype == model.blocks[0].self_attn.q.weight.dtype == torch.bfloat16
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_missing_path_and_an_empty_folder_say_what_was_looked_for(tmp_path):
    with pytest.raises(ValueError, match="no such file or folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=re.escape("looked for *.safetensors in lingbot_world_fast, transformers")):
        load(tmp_path)


def test_a_shard_that_the_index_lists_but_is_not_there_is_named(tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-00007.safetensors"}}))
    with pytest.raises(ValueError, match="not there: model-00007"):
        load(tmp_path)
    index.write_text("not json")
    with pytest.raises(ValueError, match="is no index of safetensors"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "model.pt"])
def test_a_damaged_file_is_named(tmp_path, name):
    (tmp_path / name).write_bytes(b"not weights at all")
    with pytest.raises(ValueError, match=name):
        load(tmp_path)


def test_a_file_that_would_run_code_is_refused(tmp_path):
    torch.save({"generator": nn.Linear(2, 2)}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"model\.pt"):
        load(tmp_path)


def test_a_file_without_tensors_is_refused(tmp_path):
    torch.save({"steps": 7}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="holds no tensors of a model"):
        load(tmp_path)


def test_a_missing_vae_or_text_encoder_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"the VAE is missing: there is no .*Wan2\.1_VAE\.pth"):
        checkpoint.load_vae(tmp_path, torch.float32, "cpu")
    with pytest.raises(ValueError, match="the text encoder is missing"):
        checkpoint.load_text_encoder(tmp_path, torch.float32, "cpu")


def test_every_name_of_the_published_text_encoder_has_a_place(tmp_path):
    assert layouts.umt5_name("blocks.3.ffn.gate.0.weight") == "encoder.block.3.layer.1.DenseReluDense.wi_0.weight"
    assert layouts.umt5_name("token_embedding.weight") == "shared.weight"
    assert layouts.umt5_name("blocks.3.other.weight") == "blocks.3.other.weight"
