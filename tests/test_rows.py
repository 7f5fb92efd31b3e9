"""Regions as kernels, in Triton's interpreter against their plain forms; on a GPU test_fused.py compares them."""

import warnings

import pytest
import torch
from interpreter import run_interpreted
from test_fused import inputs, worst

from kernels import fused, handmade, rows
from kernels.fp8 import _launch, quantize_rows


@pytest.fixture(autouse=True)
def untried():
    handmade.kernels_run.cache_clear()
    yield
    handmade.kernels_run.cache_clear()


def test_without_a_gpu_what_was_there_before_runs():
    plain = fused.Regions(enter=lambda x, terms: "plain")
    assert rows.by_hand(plain, False).enter(torch.zeros(1, 2, 64), torch.zeros(1, 6, 64)) == "plain"


def test_a_gpu_without_a_compiler_is_warned_about_once_and_does_without(monkeypatch):
    class NoCompiler:
        def __getitem__(self, grid):
            raise RuntimeError("Failed to find C compiler.\nmore")

    monkeypatch.setattr(handmade, "triton", object())
    monkeypatch.setattr(handmade, "_count", NoCompiler(), raising=False)
    monkeypatch.setattr(torch, "empty", lambda *sizes, device: None)
    with pytest.warns(RuntimeWarning, match="parts run slower: Failed to find C compiler.$"):
        assert not handmade.kernels_run(torch.device("cuda", 0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not handmade.kernels_run(torch.device("cuda", 0))


@pytest.mark.skipif(rows.triton is None, reason="needs triton")
def test_the_kernels_give_what_the_plain_forms_give():
    run_interpreted(__file__)


def check():
    """All in float32, so that nothing is rounded; of what is quantized the scales, for the interpreter rounds oddly."""
    torch.manual_seed(0)
    for width, heads in ((48, 2), (64, 4), (96, 3)):
        given = inputs(width, heads, 5, torch.float32, "cpu")
        for region, kernel in (("enter", rows.enter), ("heads", rows.heads), ("after_text", rows.after_text)):
            assert worst(kernel(*given[region]), getattr(fused.PLAIN, region)(*given[region])) < 1e-6, region
        for found, exact in (
            (rows.enter(*given["enter"], quantized=True), fused.enter(*given["enter"])),
            (rows.after_text(*given["after_text"], quantized=True)[1], fused.after_text(*given["after_text"])[1]),
            (_launch(*given["activate"], gelu=True), fused.activate(*given["activate"])),
        ):
            torch.testing.assert_close(found.scale, quantize_rows(exact).scale, rtol=1e-5, atol=0)


if __name__ == "__main__":
    check()
