"""Regions as kernels, in Triton's interpreter against their plain forms; on a GPU test_fused.py compares them."""

import warnings

import pytest
import torch
from interpreter import run_interpreted
from test_fused import inputs, worst

from kernels import fused, handmade, rows
from kernels.fp8 import _launch, quantize_rows
from kernels.handmade import Handmade


def test_without_a_gpu_what_was_there_before_runs():
    plain = fused.Regions(enter=lambda x, terms: "plain")
    assert rows.by_hand(plain, False).enter(torch.zeros(1, 2, 64), torch.zeros(1, 6, 64)) == "plain"


class OnGPU:
    """What a Handmade sees of a tensor on a GPU."""

    is_cuda = True


def test_a_kernel_that_turns_out_not_to_run_is_warned_about_once_and_another_way_runs(monkeypatch):
    def fail(x):
        raise RuntimeError("Failed to find C compiler.\nmore")

    monkeypatch.setattr(handmade, "triton", object())
    monkeypatch.setattr(handmade, "keep_on_disk", lambda: None)
    either = Handmade(fail, lambda x: "plain")
    with pytest.warns(RuntimeWarning, match="a part runs slower: Failed to find C compiler.$"):
        assert either(OnGPU()) == "plain"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert either(OnGPU()) == "plain"


def test_a_kernel_runs_where_it_fits_and_a_full_memory_is_no_reason_to_leave_it(monkeypatch):
    monkeypatch.setattr(handmade, "triton", object())
    monkeypatch.setattr(handmade, "keep_on_disk", lambda: None)
    memory = ["full", "free"]

    def kernel(x):
        if memory.pop(0) == "full":
            raise torch.OutOfMemoryError("full")
        return "kernel"

    either = Handmade(kernel, lambda x: "plain")
    with pytest.raises(torch.OutOfMemoryError):
        either(OnGPU())
    assert either(OnGPU()) == "kernel"
    assert Handmade(kernel, lambda x: "plain", lambda x: False)(OnGPU()) == "plain"


@pytest.mark.skipif(rows.triton is None, reason="needs triton")
def test_the_kernels_give_what_the_plain_forms_give():
    run_interpreted(__file__)


def check():
    """All in float32, so that nothing is rounded; quantized numbers roughly, for the interpreter rounds 125 to 64."""
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
            expected = quantize_rows(exact)
            torch.testing.assert_close(found.scale, expected.scale, rtol=1e-5, atol=0)
            ours, theirs = (each.values.float() for each in (found, expected))
            sure = theirs.abs() >= 1
            assert ((ours / theirs)[sure] > 0.45).all() and ((ours / theirs)[sure] < 1.15).all()


if __name__ == "__main__":
    check()
