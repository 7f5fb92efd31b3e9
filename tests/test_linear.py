import pytest
import torch
from torch import nn

from kernels.linear import Fp8Linear, fp8_matmul, fp8_matmul_reference, linear, quantize_rows


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


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="no linear precision 'int4'"):
        linear(4, 4, precision="int4")


def test_the_fp8_units_say_that_a_cpu_has_none():
    x = quantize_rows(torch.randn(4, 16))
    with pytest.raises(RuntimeError, match="cpu is not a CUDA device"):
        fp8_matmul(x, x)
