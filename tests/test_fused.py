import pytest
import torch

from kernels import fused


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def test_rope_is_the_complex_product_of_interleaved_pairs():
    x, angle = torch.randn(2, 5, 3, 8, dtype=torch.float64), torch.randn(2, 5, 4, dtype=torch.float64)
    turned = torch.view_as_complex(x.unflatten(-1, (-1, 2))) * torch.polar(torch.ones_like(angle), angle).unsqueeze(2)
    expected = torch.view_as_real(turned).flatten(-2)
    ours = fused.rope(x.float(), angle.cos().float(), angle.sin().float())
    torch.testing.assert_close(ours.double(), expected, atol=1e-6, rtol=1e-6)


def test_rms_norm_divides_by_the_root_of_the_mean_square():
    x, weight = torch.randn(2, 5, 8), torch.randn(8)
    expected = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight
    torch.testing.assert_close(fused.rms_norm(x, weight), expected)


def test_norm_modulate_scales_and_shifts_what_layer_norm_centred():
    x, shift, scale = torch.randn(2, 5, 8), torch.randn(2, 1, 8), torch.randn(2, 1, 8)
    centred = x - x.mean(-1, keepdim=True)
    normed = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(fused.norm_modulate(x, shift, scale), normed * (1 + scale) + shift)


def test_layer_norm_has_weight_and_bias():
    x, weight, bias = torch.randn(2, 5, 8), torch.randn(8), torch.randn(8)
    plain = fused.layer_norm(x, torch.ones(8), torch.zeros(8))
    torch.testing.assert_close(fused.layer_norm(x, weight, bias), plain * weight + bias)


def test_gate_and_camera_modulation_are_plain_arithmetic():
    x, y, a = torch.randn(2, 5, 8), torch.randn(2, 5, 8), torch.randn(2, 1, 8)
    torch.testing.assert_close(fused.gated_add(x, y, a), x + y * a)
    torch.testing.assert_close(fused.modulate(x, y, a.expand_as(x)), (1 + y) * x + a)


def test_bfloat16_activations_are_computed_in_float32_and_come_back_as_bfloat16():
    x, shift, scale = torch.randn(2, 5, 64).bfloat16(), torch.randn(2, 1, 64), torch.randn(2, 1, 64)
    ours = fused.norm_modulate(x, shift, scale)
    assert ours.dtype == torch.bfloat16
    assert torch.equal(ours, fused.norm_modulate(x.float(), shift, scale).bfloat16())
