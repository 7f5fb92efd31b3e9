import warnings

import pytest
import torch

from kernels import fused
from kernels.compiled import compiled
from kernels.fp8 import Quantized
from kernels.rows import by_hand


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def test_rope_is_the_complex_product_of_interleaved_pairs():
    x, angle = torch.randn(2, 5, 3, 8, dtype=torch.float64), torch.randn(2, 5, 4, dtype=torch.float64)
    turned = torch.view_as_complex(x.unflatten(-1, (-1, 2))) * torch.polar(torch.ones_like(angle), angle).unsqueeze(2)
    expected = torch.view_as_real(turned).flatten(-2)
    ours = fused.rope(x.float(), angle.cos().float(), angle.sin().float())
    torch.testing.assert_close(ours.double(), expected, atol=1e-6, rtol=1e-6)


def test_rope_for_a_compiler_is_the_same_to_the_last_bit_where_nothing_is_contracted():
    x, angle = torch.randn(2, 5, 3, 8), torch.randn(2, 5, 4)
    assert torch.equal(fused.rope_in_place_order(x, angle.cos(), angle.sin()), fused.rope(x, angle.cos(), angle.sin()))


@pytest.mark.parametrize("shape", [(2, 60, 4, 64), (1, 7, 3, 88), (3, 5, 1, 6), (1, 1, 1, 2)])
def test_rope_by_whole_rows_gives_the_same_bits_as_by_parts(shape):
    x, angle = torch.randn(shape), torch.randn(*shape[:2], shape[-1] // 2)
    expected = fused._rope_by_parts(x, angle.cos(), angle.sin())
    assert torch.equal(fused._rope_by_rows(x, angle.cos(), angle.sin()), expected)
    laid_otherwise = x.transpose(1, 2).contiguous().transpose(1, 2)
    for each in (x, laid_otherwise, x.flatten(2).repeat(1, 1, 2).chunk(2, dim=-1)[0].unflatten(-1, shape[2:])):
        assert torch.equal(fused.rope(each, angle.cos(), angle.sin()), expected)


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


def inputs(width: int, heads: int, tokens: int, dtype: torch.dtype, device: str) -> dict[str, tuple]:
    """Arguments of each region for two slots."""

    def stream(columns: int = width) -> torch.Tensor:
        return torch.randn(2, tokens, columns, device=device).to(dtype)

    def weight() -> torch.Tensor:
        return 1 + 0.1 * torch.randn(width, device=device)

    terms, angle = torch.randn(2, 6, width, device=device), torch.randn(2, tokens, width // heads // 2, device=device)
    q, k, _ = stream(3 * width).chunk(3, dim=-1)
    return {
        "enter": (stream(), terms),
        "heads": (q, k, (weight(), weight()), (angle.cos(), angle.sin()), heads),
        "after_attention": (stream(), stream(), terms, (stream(), stream()), weight(), weight()),
        "query": (stream(), weight(), heads),
        "after_text": (stream(), stream(), terms),
        "activate": (stream(4 * width),),
        "leave": (stream(), stream(), terms),
        "as_rows": (stream(),),
    }


def flat(result) -> list[torch.Tensor]:
    """The tensors of a region's result in float64, quantized ones as what they stand for."""
    if isinstance(result, Quantized):
        return [result.values.double() * result.scale.double()]
    return [result.double()] if isinstance(result, torch.Tensor) else [each for part in result for each in flat(part)]


def worst(ours, expected) -> float:
    pairs = zip(flat(ours), flat(expected), strict=True)
    return max(float((one - other).norm() / other.norm()) for one, other in pairs)


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("region", fused.Regions._fields)
def test_a_traced_region_gives_what_the_plain_one_gives(region, quantized):
    plain = fused.quantizing(fused.PLAIN) if quantized else fused.PLAIN
    given = inputs(64, 2, 3, torch.float32, "cpu")[region]
    assert worst(getattr(compiled(quantized, "eager"), region)(*given), getattr(plain, region)(*given)) < 1e-6


def test_a_region_that_cannot_be_compiled_runs_plainly_and_says_so_once():
    def broken(*_):
        raise OSError("no compiler here")

    regions, given = compiled(False, broken), inputs(64, 2, 3, torch.float32, "cpu")["enter"]
    with pytest.warns(RuntimeWarning, match="runs uncompiled and slower: .*no compiler here"):
        first = regions.enter(*given)
    assert torch.equal(first, fused.enter(*given)) and torch.equal(regions.enter(*given), first)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("region", fused.Regions._fields)
def test_a_compiled_region_is_no_further_from_the_exact_result_than_the_plain_one(region, dtype, quantized):
    given = inputs(1536, 12, 97, dtype, "cuda")[region]
    exact = getattr(fused.PLAIN, region)(*widened(given))
    plain = getattr(fused.quantizing(fused.PLAIN) if quantized else fused.PLAIN, region)(*given)
    regions = compiled(quantized)
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # of a way that does not run here, and is left for another
        for way in (regions, by_hand(regions, quantized)):
            ours = getattr(way, region)(*given)
            assert worst(ours, exact) < 1.05 * worst(plain, exact) + 1e-6


def widened(given):
    """The same numbers in float32."""
    if isinstance(given, tuple):
        return tuple(widened(each) for each in given)
    return given.float() if isinstance(given, torch.Tensor) else given
