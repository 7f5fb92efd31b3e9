import pytest
import torch
from torch import nn

from kernels.fp8 import quantize_rows
from kernels.linear import Fp8Linear, fp8_matmul, fp8_matmul_reference, join, linear, plain_weight


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def test_quantized_rows_are_within_half_a_step_of_float8():
    x = torch.randn(7, 64) * torch.logspace(-3, 3, 7)[:, None]
    values, scale = quantize_rows(x)
    assert (values.float() * scale - x).norm(dim=1).div(x.norm(dim=1)).max() < 0.04


def test_the_largest_of_each_row_uses_the_whole_range_and_a_row_of_zeros_stays_zero():
    values, _ = quantize_rows(torch.stack((torch.linspace(-3, 3, 16), torch.zeros(16))))
    assert values.float().abs().amax(1).tolist() == [448.0, 0.0]


def test_the_fp8_product_is_close_to_the_exact_one():
    x, weight = torch.randn(5, 256), torch.randn(32, 256)
    ours = fp8_matmul_reference(quantize_rows(x), quantize_rows(weight))
    assert (ours - x @ weight.T).norm() / (x @ weight.T).norm() < 0.05


def test_an_fp8_linear_takes_the_state_dict_of_a_plain_one():
    plain, eight = linear(64, 32), linear(64, 32, precision="fp8")
    eight.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 64)
    assert isinstance(eight, Fp8Linear) and eight.weight.dtype == torch.float8_e4m3fn
    assert (eight(x) - plain(x)).norm() / plain(x).norm() < 0.05


def test_an_fp8_linear_takes_its_own_state_dict_unchanged():
    first, second = linear(64, 32, precision="fp8"), linear(64, 32, precision="fp8")
    first.load_state_dict(nn.Linear(64, 32).state_dict())
    second.load_state_dict(first.state_dict())
    x = torch.randn(3, 64)
    assert torch.equal(first(x), second(x))


def test_an_fp8_linear_takes_rows_that_are_quantized_already():
    layer = linear(64, 32, precision="fp8")
    layer.load_state_dict(nn.Linear(64, 32).state_dict())
    x = torch.randn(2, 3, 64)
    assert torch.equal(layer(quantize_rows(x)), layer(x))


@pytest.mark.parametrize("precision", ["plain", "fp8"])
def test_joined_layers_give_side_by_side_what_each_gives_and_share_its_memory(precision):
    layers = [linear(64, out, precision=precision) for out in (32, 16)]
    for layer in layers:
        layer.load_state_dict(nn.Linear(64, len(layer.weight)).state_dict())
    x = torch.randn(2, 3, 64)
    expected = torch.cat([layer(x) for layer in layers], dim=-1)
    joint = join(layers)
    torch.testing.assert_close(joint(x), expected)
    torch.testing.assert_close(torch.cat([layer(x) for layer in layers], dim=-1), expected)
    assert layers[0].weight.data_ptr() == joint.weight.data_ptr()
    layers[1].load_state_dict(nn.Linear(64, 16).state_dict())
    torch.testing.assert_close(joint(x)[..., 32:], layers[1](x))


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="no linear precision 'int4'"):
        linear(4, 4, precision="int4")


def test_the_fp8_units_say_that_a_cpu_has_none():
    x = quantize_rows(torch.randn(4, 16))
    with pytest.raises(RuntimeError, match="cpu is not a CUDA device"):
        fp8_matmul(x, x)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_the_fp8_units_compute_what_the_reference_does():
    x, weight = (quantize_rows(torch.randn(n, 256, device="cuda")) for n in (48, 32))
    bias = torch.randn(32, device="cuda")
    ours, expected = fp8_matmul(x, weight, bias).float(), fp8_matmul_reference(x, weight, bias)
    assert (ours - expected).norm() / expected.norm() < 5e-3


def test_the_weight_of_either_precision_is_the_one_that_was_loaded():
    plain, eight = linear(64, 32), linear(64, 32, precision="fp8")
    eight.load_state_dict(plain.state_dict())
    assert torch.equal(plain_weight(plain), plain.weight)
    assert (plain_weight(eight) - plain.weight).norm() / plain.weight.norm() < 0.04
