import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from kernels.fp8 import quantize_rows
from pipeline import checkpoint, layouts, tensors
from pipeline.tensors import MAPPED_BYTES
from pipeline.transformer import Transformer, TransformerConfig

ROOT = Path(__file__).parent.parent
SMALL = TransformerConfig(dim=24, ffn_dim=32, heads=2, layers=2, in_channels=16, text_dim=8)


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(0)
    return {name: tensor.detach() for name, tensor in Transformer(SMALL).state_dict().items()}


def load(path, dtype=torch.float32):
    return checkpoint.plan_transformer(path, SMALL).load(dtype, "cpu")


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


def test_shards_load_without_an_index_too(tmp_path, state):
    names = sorted(state)
    for number in range(2):
        shard = {name: state[name].contiguous() for name in names[number::2]}
        save_file(shard, tmp_path / f"model-0000{number + 1}-of-00002.safetensors")
    assert same(load(tmp_path), state)


@pytest.mark.parametrize("wrapper", ["model.", "model._fsdp_wrapped_module.", ""])
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


def test_numbers_that_mean_nothing_without_their_scales_are_refused_by_name(tmp_path, state):
    name = "blocks.0.ffn.0.weight"
    save_file({**state, name: state[name].to(torch.float8_e4m3fn)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=re.escape(f"16 bits or more: {name} (torch.float8_e4m3fn)")):
        load(tmp_path)


def test_a_tensor_in_two_files_or_under_two_names_is_an_error(tmp_path, state):
    save_file(state, tmp_path / "model.safetensors")
    save_file({"head.modulation": state["head.modulation"]}, tmp_path / "model.fp16.safetensors")
    with pytest.raises(ValueError, match=r"head\.modulation is both in .*; keep one of the files"):
        load(tmp_path)
    torch.save({**state, "model.head.modulation": state["head.modulation"]}, tmp_path / "twice.pt")
    with pytest.raises(ValueError, match=r"holds head\.modulation twice, once as model\.head\.modulation"):
        load(tmp_path / "twice.pt")


def test_no_tensor_is_read_before_all_are_known_to_fit(tmp_path, state, monkeypatch):
    def read(*_):
        raise AssertionError("a tensor was read")

    broken = {name: tensor for name, tensor in state.items() if name != "head.modulation"}
    save_file(broken, tmp_path / "model.safetensors")
    monkeypatch.setattr(tensors, "_read", read)
    with pytest.raises(ValueError, match=r"missing: head\.modulation$"):
        load(tmp_path)


def test_what_is_loaded_does_not_depend_on_the_file_any_more(tmp_path, state):
    save_file(state, tmp_path / "model.safetensors")
    model = load(tmp_path)
    size = (tmp_path / "model.safetensors").stat().st_size
    with (tmp_path / "model.safetensors").open("r+b") as file:
        file.write(b"\xff" * size)
    assert same(model, state)


def test_a_model_with_fp8_linears_takes_the_same_files(tmp_path, state):
    save_file(state, tmp_path / "model.safetensors")
    config = dataclasses.replace(SMALL, precision="fp8")
    model = checkpoint.plan_transformer(tmp_path, config).load(torch.bfloat16, "cpu")
    weight = state["blocks.1.ffn.0.weight"].bfloat16()
    values, scale = quantize_rows(weight)
    assert torch.equal(model.blocks[1].ffn[0].weight.float(), values.float())
    assert torch.equal(model.blocks[1].ffn[0].weight_scale, scale)
    assert not any(each.is_meta for each in model.state_dict().values())


MEMORY = """
import re, sys
from pathlib import Path
import torch
from pipeline import checkpoint
from pipeline.transformer import TransformerConfig

config = TransformerConfig(dim=1024, ffn_dim=4096, heads=8, layers=4, in_channels=16, text_dim=64)
plan = checkpoint.plan_transformer(Path(sys.argv[1]), config)

def peak():  # not ru_maxrss, which a process inherits from the one that started it
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

before = peak()
model = plan.load(torch.bfloat16, "cpu")
grown = peak() - before
print(grown, sum(each.nbytes for each in model.state_dict().values()), plan.nbytes)
"""


@pytest.mark.parametrize("kind", ["shards", "pickle"])
def test_loading_holds_the_model_and_little_more_whatever_the_files_size(tmp_path, kind):
    config = TransformerConfig(dim=1024, ffn_dim=4096, heads=8, layers=4, in_channels=16, text_dim=64)
    with torch.device("meta"):
        full = {name: torch.ones(each.shape, device="cpu") for name, each in Transformer(config).state_dict().items()}
    if kind == "pickle":
        torch.save({"generator_ema": full}, tmp_path / "model.pt")
    else:
        for number in range(4):
            part = {name: full[name] for name in sorted(full)[number::4]}
            save_file(part, tmp_path / f"model-0000{number + 1}-of-00004.safetensors")
    run = subprocess.run([sys.executable, "-c", MEMORY, tmp_path], cwd=ROOT, capture_output=True, text=True, check=True)
    grown, kept, read = map(int, run.stdout.split())
    assert read > 300e6
    assert kept < grown + 50e6, "the measure itself: at least the model must be seen"
    assert grown < kept + MAPPED_BYTES + 40e6 < kept + read / 2


def test_a_file_of_an_older_torch_loads_too(tmp_path, state):
    torch.save(state, tmp_path / "model.pt", _use_new_zipfile_serialization=False)
    assert same(load(tmp_path), state)


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
        checkpoint.plan_vae((tmp_path,))
    with pytest.raises(ValueError, match="the text encoder is missing"):
        checkpoint.plan_text_encoder((tmp_path,))


def test_every_name_of_the_published_text_encoder_has_a_place(tmp_path):
    assert layouts.umt5_name("blocks.3.ffn.gate.0.weight") == "encoder.block.3.layer.1.DenseReluDense.wi_0.weight"
    assert layouts.umt5_name("token_embedding.weight") == "shared.weight"
    assert layouts.umt5_name("blocks.3.other.weight") == "blocks.3.other.weight"
