import json
import re

import pytest
import torch
from safetensors.torch import save_file

from pipeline import checkpoint
from pipeline.transformer import Transformer, TransformerConfig

SMALL = TransformerConfig(dim=24, ffn_dim=32, heads=2, layers=2, in_channels=16, text_dim=8)
RANK = 4
CHANGED = ("blocks.0.self_attn.q", "blocks.1.ffn.2", "blocks.1.cross_attn.o")


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(0)
    return {name: tensor.detach() for name, tensor in Transformer(SMALL).state_dict().items()}


@pytest.fixture(scope="module")
def factors(state):
    """Down and up of each changed module."""
    torch.manual_seed(1)
    shapes = {name: state[f"{name}.weight"].shape for name in CHANGED}
    return {name: (torch.randn(RANK, shape[1]), torch.randn(shape[0], RANK)) for name, shape in shapes.items()}


def expected(state, factors, scale=1.0):
    changed = {f"{name}.weight": state[f"{name}.weight"] + scale * up @ down for name, (down, up) in factors.items()}
    return {**state, **changed}


def named(factors, spell):
    down, up = spell
    found = {}
    for name, pair in factors.items():
        found |= {down.format(name): pair[0], up.format(name): pair[1]}
    return found


def check(model, wanted):
    ours = model.state_dict()
    assert ours.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(ours[name], tensor.to(ours[name].dtype), rtol=1e-6, atol=1e-6, msg=name)


def load(base, lora=None, dtype=torch.float32):
    return checkpoint.plan_transformer(base, SMALL, lora).load(dtype, "cpu")


@pytest.mark.parametrize(
    "spell",
    [
        ("base_model.model.{}.lora_A.weight", "base_model.model.{}.lora_B.weight"),
        ("base_model.model.model.{}.lora_A.default.weight", "base_model.model.model.{}.lora_B.default.weight"),
        ("{}.lora_A.weight", "{}.lora_B.weight"),
        ("diffusion_model.{}.lora_down.weight", "diffusion_model.{}.lora_up.weight"),
        ("model._fsdp_wrapped_module.{}.lora_A.weight", "model._fsdp_wrapped_module.{}.lora_B.weight"),
    ],
)
def test_a_lora_is_merged_under_every_usual_spelling(tmp_path, state, factors, spell):
    torch.save({"generator": {f"model.{name}": t for name, t in state.items()}}, tmp_path / "longlive_base.pt")
    torch.save({"generator_lora": named(factors, spell)}, tmp_path / "lora.pt")
    check(load(tmp_path / "longlive_base.pt", tmp_path / "lora.pt"), expected(state, factors))


def test_flattened_names_with_their_own_alpha_are_merged(tmp_path, state, factors):
    save_file(state, tmp_path / "model.safetensors")
    tensors = {}
    for name, (down, up) in factors.items():
        flat = "lora_unet_" + name.replace(".", "_")
        tensors |= {f"{flat}.lora_down.weight": down, f"{flat}.lora_up.weight": up, f"{flat}.alpha": torch.tensor(2.0)}
    (tmp_path / "lora").mkdir()
    save_file(tensors, tmp_path / "lora" / "turn.safetensors")
    check(load(tmp_path, tmp_path / "lora"), expected(state, factors, 2.0 / RANK))


def test_diffusers_names_are_merged_with_the_alpha_of_their_config(tmp_path, state, factors):
    save_file(state, tmp_path / "model.safetensors")
    theirs = {"blocks.0.self_attn.q": "blocks.0.attn1.to_q", "blocks.1.ffn.2": "blocks.1.ffn.net.2"}
    theirs["blocks.1.cross_attn.o"] = "blocks.1.attn2.to_out.0"
    renamed = {theirs[name]: pair for name, pair in factors.items()}
    (tmp_path / "lora").mkdir()
    spell = ("transformer.{}.lora_A.weight", "transformer.{}.lora_B.weight")
    save_file(named(renamed, spell), tmp_path / "lora" / "adapter_model.safetensors")
    (tmp_path / "lora" / "adapter_config.json").write_text(json.dumps({"r": RANK, "lora_alpha": 8}))
    check(load(tmp_path, tmp_path / "lora"), expected(state, factors, 8 / RANK))


@pytest.mark.parametrize("folder", [".", "models"])
def test_a_folder_with_a_base_and_its_lora_is_told_apart_by_what_they_hold(tmp_path, state, factors, folder):
    (tmp_path / folder).mkdir(exist_ok=True)
    torch.save({"generator": state}, tmp_path / folder / "a.pt")
    torch.save(named(factors, ("{}.lora_A.weight", "{}.lora_B.weight")), tmp_path / folder / "b.pt")
    check(load(tmp_path), expected(state, factors))
    torch.save({"generator": state}, tmp_path / folder / "c.pt")
    with pytest.raises(ValueError, match=re.escape("holds a.pt, b.pt, c.pt; name the one that is meant")):
        load(tmp_path)


def test_merging_is_done_in_float32_and_rounded_once(tmp_path, state, factors):
    save_file({name: tensor.bfloat16() for name, tensor in state.items()}, tmp_path / "model.safetensors")
    save_file(named(factors, ("{}.lora_A.weight", "{}.lora_B.weight")), tmp_path / "lora.safetensors")
    model = load(tmp_path / "model.safetensors", tmp_path / "lora.safetensors", torch.bfloat16)
    for name, (down, up) in factors.items():
        exact = torch.addmm(state[f"{name}.weight"].bfloat16().float(), up, down).bfloat16()
        assert torch.equal(model.state_dict()[f"{name}.weight"], exact)


def test_every_tensor_of_a_lora_that_has_no_place_is_in_one_error(tmp_path, state, factors):
    save_file(state, tmp_path / "model.safetensors")
    tensors = named(factors, ("{}.lora_A.weight", "{}.lora_B.weight"))
    del tensors["blocks.1.ffn.2.lora_B.weight"]
    tensors["blocks.9.self_attn.q.lora_A.weight"] = torch.zeros(RANK, 24)
    tensors["blocks.0.self_attn.q.diff_b"] = torch.zeros(24)
    tensors["blocks.0.self_attn.q.lora_B.weight"] = torch.zeros(25, RANK)
    save_file(tensors, tmp_path / "lora.safetensors")
    with pytest.raises(ValueError) as error:
        load(tmp_path / "model.safetensors", tmp_path / "lora.safetensors")
    message = str(error.value)
    for part in (
        str(tmp_path / "lora.safetensors"),
        "unmatched: blocks.0.self_attn.q.diff_b, blocks.9.self_attn.q.lora_A.weight",
        "only half there: blocks.1.ffn.2.weight",
        "mis-shaped: blocks.0.self_attn.q.weight is (24, 24), its factors (25, 4) and (4, 24)",
    ):
        assert part in message


def test_a_file_without_a_lora_is_refused(tmp_path, state):
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="unmatched: blocks"):
        load(tmp_path / "model.safetensors", tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="there is no LoRA at"):
        load(tmp_path / "model.safetensors", tmp_path / "nowhere")
    (tmp_path / "adapter_config.json").write_text("{}")
    save_file(
        {
            "blocks.0.self_attn.q.lora_A.weight": torch.zeros(2, 24),
            "blocks.0.self_attn.q.lora_B.weight": torch.zeros(24, 2),
        },
        tmp_path / "lora.safetensors",
    )
    with pytest.raises(ValueError, match="does not tell lora_alpha"):
        load(tmp_path / "model.safetensors", tmp_path / "lora.safetensors")
