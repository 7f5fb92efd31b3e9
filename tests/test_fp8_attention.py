"""Attention in FP8: what it loses, what it does not see, and where it cannot run; its kernels where there are some."""

import contextlib
import math
import sys
import types

import pytest
import torch
from interpreter import run_interpreted

from kernels import fp8_attention as module
from kernels.attention import attention
from kernels.fp8 import FP8
from kernels.fp8_attention import Fp8Attention, fp8_attention_missing, narrow, reference, value_scale, widen

HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability() >= module.OLDEST


def tensors(queries=40, rows=300, heads=3, width=16, device="cpu", size=8.0):
    torch.manual_seed(0)
    shapes = ((queries, heads, width), (rows, heads, width), (rows, heads, width))
    q, k, v = (torch.randn(shape, device=device) for shape in shapes)
    return narrow(q * 1.5), narrow(k * 1.5), narrow(v * size)


def exact(q, k, v):
    return attention(*(each.float()[None] for each in (q, k, v)), "sdpa")[0]


def off(found, expected):
    return float((found.float() - expected).norm() / expected.norm())


def test_it_is_attention_but_for_the_rounding_of_probabilities_and_of_the_result():
    q, k, v = tensors()
    found = Fp8Attention()(q, k, v, len(k))
    assert found.dtype == FP8 and 0.01 < off(found, exact(q, k, v)) < 0.05


def test_rows_beyond_the_count_are_not_seen():
    q, k, v = tensors()
    assert torch.equal(Fp8Attention()(q, k, v, 100).float(), reference(q, k[:100], v[:100]).float())


def test_a_single_key_gives_its_value_whatever_the_score():
    q, k, v = tensors(rows=1)
    assert torch.equal(Fp8Attention()(q, k, v, 1).float(), v.float().expand(len(q), -1, -1))


def test_an_average_of_a_whole_windows_values_is_still_finely_held():
    values = torch.randn(28080, 2, 16, generator=torch.Generator().manual_seed(1))
    q, k, v = torch.zeros(4, 2, 16), torch.zeros(28080, 2, 16), narrow(values, module.VALUES_SIZE)
    found = widen(Fp8Attention()(narrow(q), narrow(k), v, len(k)), torch.float32, module.VALUES_SIZE)
    assert off(found, values.mean(0).expand(4, -1, -1)) < 0.06


def test_numbers_beyond_the_range_become_its_ends_and_what_is_no_number_stays_none():
    numbers = torch.tensor([[1e4, -1e4, 448.0, 0.0, math.nan]])
    found = narrow(numbers).float()
    assert found[0, :4].tolist() == [448, -448, 448, 0] and found[0, 4].isnan()


@pytest.mark.parametrize("size", [0.02, 1.0, 30.0])
def test_values_are_brought_to_one_size_by_a_power_of_two_and_come_back_as_they_were(size):
    scale = value_scale(size)
    values = torch.randn(500, 64, generator=torch.Generator().manual_seed(1)) * size
    assert math.log2(scale).is_integer()
    assert module.VALUES_SIZE / 2 < values.square().mean().sqrt() * scale < module.VALUES_SIZE * 2
    assert off(widen(narrow(values, scale), torch.float32, scale), values) < 0.03


def test_values_that_are_nothing_or_no_number_are_left_as_they_are():
    assert value_scale(0.0) == value_scale(math.inf) == value_scale(math.nan) == 1.0


@pytest.fixture(autouse=True)
def untried():
    fp8_attention_missing.cache_clear()
    yield
    fp8_attention_missing.cache_clear()


def test_a_cpu_can_always_check_it_and_an_older_gpu_says_what_it_lacks(monkeypatch):
    assert fp8_attention_missing(torch.device("cpu")) is None
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 9))
    assert fp8_attention_missing(torch.device("cuda")) == "it needs compute capability 9.0, this GPU has 8.9"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            ModuleNotFoundError("No module named 'cudnn'"),
            "No module named 'cudnn'; chunkcast's extra 'hopper' brings it",
        ),
        (AssertionError(), "cuDNN has none here: AssertionError"),
        (RuntimeError("no plan\nfor this GPU"), "cuDNN has none here: no plan"),
    ],
)
def test_whatever_a_frontend_lacks_is_told_before_anything_is_loaded(monkeypatch, error, said):
    def fail(*_):
        raise error

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    monkeypatch.setattr(module, "_Plan", fail)
    assert fp8_attention_missing(torch.device("cuda")) == said


class Described:
    """A tensor of FakeGraph's."""

    def __init__(self, **facts):
        self.facts = facts

    def set(self, **facts):
        self.facts |= facts
        return self

    def set_output(self, value):
        return self.set(output=value)

    def set_dim(self, dim):
        return self.set(dim=dim)

    def set_stride(self, stride):
        return self.set(stride=stride)

    def set_data_type(self, kind):
        return self.set(data_type=kind)


class FakeGraph:
    """What a plan uses of cuDNN's frontend; it computes the reference."""

    def __init__(self, **options):
        self.steps = []

    def tensor(self, **facts):
        return Described(**facts)

    def sdpa_fp8(self, **given):
        self.given, self.results = given, [Described() for _ in range(4)]
        return self.results

    def get_workspace_size(self):
        return 0

    def execute(self, tensors, workspace, handle):
        q, k, v, rows, count = (tensors[self.given[name]] for name in ("q", "k", "v", "seq_len_q", "seq_len_kv"))
        scales = {name: float(tensors[self.given[name]]) for name in module._SCALES}
        assert scales.pop("scale_s") == 1 / scales.pop("descale_s") == module.PROBABILITY_SCALE
        assert set(scales.values()) == {1.0} and int(rows) == len(q) and self.steps == BUILT
        assert self.given["use_padding_mask"] and self.given["attn_scale"] == 1 / math.sqrt(q.shape[-1])
        for name, tensor in zip(("q", "k", "v"), (q, k, v), strict=True):
            described, heads_first = self.given[name].facts, tensor[None].transpose(1, 2)
            assert (described["dim"], described["stride"]) == (list(heads_first.shape), list(heads_first.stride()))
        tensors[self.results[0]].copy_(reference(q, k[: int(count)], v[: int(count)]))

    def __getattr__(self, name):
        return lambda *_: self.steps.append(name)


BUILT = ["validate", "build_operation_graph", "create_execution_plans", "check_support", "build_plans"]


def test_a_plan_tells_cudnn_shapes_scales_and_how_many_rows_are_seen(monkeypatch):
    streams = []
    kinds = types.SimpleNamespace(FP8_E4M3="fp8", FLOAT="float", INT32="int")
    frontend = types.SimpleNamespace(
        data_type=kinds,
        heur_mode=types.SimpleNamespace(A="A", FALLBACK="fallback"),
        pygraph=FakeGraph,
        create_handle=lambda: "handle",
        set_stream=lambda handle, stream: streams.append((handle, stream)),
    )
    monkeypatch.setitem(sys.modules, "cudnn", frontend)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: types.SimpleNamespace(cuda_stream=7))
    q, k, v = tensors()
    plan = module._Plan(q.shape, k.shape, torch.device("cpu"))
    for count in (100, 300):
        assert torch.equal(plan.run(q, k, v, count).float(), reference(q, k[:count], v[:count]).float())
    assert streams == [("handle", 7)] * 2


needs_hopper = [
    pytest.mark.gpu,
    pytest.mark.skipif(not HOPPER, reason="needs a GPU of compute capability 9.0"),
    pytest.mark.skipif(
        bool(HOPPER and fp8_attention_missing(torch.device("cuda"))), reason="needs nvidia-cudnn-frontend"
    ),
]


def marked(test):
    for mark in needs_hopper:
        test = mark(test)
    return test


@marked
@pytest.mark.parametrize(("rows", "count", "width"), [*((28080, n, 128) for n in (6240, 28079, 28080)), (240, 60, 64)])
def test_cudnns_kernel_is_the_reference_for_every_number_of_keys(rows, count, width):
    q, k, v = tensors(rows // 4, rows, 3, width, "cuda")
    k[count:], v[count:] = k[:1], narrow(torch.full((3, width), 400.0, device="cuda"))
    found = Fp8Attention()(q, k, v, count)
    assert off(found, exact(q, k[:count], v[:count])) < 0.05
    assert off(found, reference(q, k[:count], v[:count]).float()) < 0.03


@marked
def test_cudnns_kernel_can_be_captured_and_gives_the_same_bits():
    q, k, v = tensors(1560, 6240, 3, 128, "cuda")
    expected = Fp8Attention()(q, k, v, 6240).view(torch.uint8).clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made = Fp8Attention()(q, k, v, 6240)
    made.view(torch.uint8).zero_()
    graph.replay()
    assert torch.equal(made.view(torch.uint8), expected)


@marked
def test_on_a_gpu_what_is_no_number_stays_none():
    numbers = torch.tensor([[math.nan, 1e4, 1.0, 0.0]], device="cuda")
    assert narrow(numbers).float()[0].isnan().tolist() == [True, False, False, False]


def compare(x, scale):
    """The kernels against the plain forms, also for rows that lie apart."""
    for rows in (x, torch.cat((x, x), dim=1)[:, : x.shape[1]]):
        narrowed = module._launch(rows, FP8, scale, module.FP8_MAX)
        assert torch.equal(narrowed.view(torch.uint8), module._narrow_plainly(rows, scale).view(torch.uint8))
    widened = module._launch(narrowed, torch.float32, 1 / scale, torch.finfo(torch.float32).max)
    assert torch.equal(widened, narrowed.float() / scale)


@marked
def test_on_a_gpu_the_kernels_give_the_plain_forms_bits():
    for scale in (0.25, 1.0, 8.0):
        for dtype in (torch.float32, torch.bfloat16):
            compare((torch.randn(50, 3, 500, device="cuda") * 100).to(dtype), scale)


@pytest.mark.skipif(module.triton is None, reason="needs triton")
def test_the_kernels_give_the_plain_forms_bits():
    run_interpreted(__file__)


if __name__ == "__main__":
    for scale in (0.25, 1.0, 8.0):  # numbers that need no rounding: the interpreter's own is another
        compare(narrow((torch.randn(5, 3, 500) * 100).round()).float(), scale)
