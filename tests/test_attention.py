import sys

import pytest
import torch

from kernels import attention as module
from kernels.attention import Choice, Shape, attention, attention_each, available_backends


def plain(q, k, v):
    scores = torch.einsum("blhd,bshd->bhls", q, k) / q.shape[-1] ** 0.5
    return torch.einsum("bhls,bshd->blhd", scores.softmax(-1), v)


def tensors(heads=3, width=10):
    torch.manual_seed(0)
    return torch.randn(2, 5, heads, width), torch.randn(2, 11, heads, width), torch.randn(2, 11, heads, width)


@pytest.mark.parametrize("backend", ["auto", "sdpa"])
def test_attention_is_softmax_of_scaled_products(backend):
    q, k, v = tensors()
    torch.testing.assert_close(attention(q, k, v, backend), plain(q, k, v))


def test_each_absent_backend_has_a_reason_and_the_plain_one_is_never_absent():
    backends = available_backends()
    assert backends["sdpa"] is None
    assert all(reason is None or reason for reason in backends.values())


def test_an_unknown_backend_is_refused_with_the_names_that_exist():
    with pytest.raises(ValueError, match="no attention backend 'flash9'"):
        attention(*tensors(), backend="flash9")


@pytest.mark.parametrize("backend", ["flash4", "flash3", "flash2", "cudnn", "torch-flash"])
def test_a_gpu_backend_says_why_it_does_not_take_cpu_tensors(backend):
    with pytest.raises(ValueError, match=f"'{backend}' cannot run: "):
        attention(*tensors(), backend=backend)


class OnGPU:
    """What a Choice sees of a tensor on a GPU."""

    is_cuda, dtype = True, torch.bfloat16

    def __init__(self, tokens, slots=1):
        self.shape = (slots, tokens, 40, 128)


def timed_as(monkeypatch, times):
    """Each shape that is timed from now on, with these milliseconds by backend, a dict for a number of keys."""
    asked = []
    monkeypatch.setattr(module, "_timed", lambda q, k, v: (asked.append(k.shape[1]), times(k.shape[1]))[1])
    monkeypatch.setattr(module, "_missing", lambda name: None)
    return asked


def of(choice, keys, slots=1):
    return choice.of(OnGPU(100, slots), OnGPU(keys, slots), OnGPU(keys, slots))


def test_the_quickest_backend_of_each_shape_is_taken_and_each_is_timed_once(monkeypatch):
    asked = timed_as(monkeypatch, lambda keys: {"cudnn": 2.0, "flash4": 1.0 if keys > 500 else 3.0})
    choice = Choice()
    with choice.learning():
        assert [of(choice, keys) for keys in (100, 1000, 100, 1000)] == ["cudnn", "flash4", "cudnn", "flash4"]
    assert asked == [100, 1000]
    assert [(row["keys"], row["taken"]) for row in choice.report()] == [(100, "cudnn"), (1000, "flash4")]


def test_lengths_near_one_that_was_timed_take_its_backend_and_nothing_is_timed_after_the_warm_up(monkeypatch):
    asked = timed_as(monkeypatch, lambda keys: {"cudnn": 1.0} if keys < 300 else {"efficient": 1.0})
    choice = Choice()
    with choice.learning():
        assert [of(choice, keys) for keys in (100, 120, 400)] == ["cudnn", "cudnn", "efficient"]
    assert [of(choice, keys) for keys in (10, 190, 210, 9999)] == ["cudnn", "cudnn", "efficient", "efficient"]
    assert of(choice, 100, slots=2) == "flash4" and asked == [100, 400]  # two slots were never met: as by reputation


def test_a_forced_backend_is_taken_whatever_would_be_quicker(monkeypatch):
    asked = timed_as(monkeypatch, lambda keys: {"flash4": 1.0})
    choice = Choice("cudnn")
    with choice.learning():
        assert of(choice, 100) == "cudnn"
    assert not asked


def test_one_disturbed_run_decides_nothing_and_a_backend_that_fails_is_left_out(monkeypatch):
    clock = [0.0]

    class Event:
        def __init__(self, enable_timing):
            self.at = 0.0

        def record(self):
            self.at = clock[0]

        def elapsed_time(self, other):
            return other.at - self.at

    runs = []

    def kernel(name, milliseconds):
        def run(q, k, v):
            runs.append(name)
            clock[0] += 50.0 if len(runs) in (8, 9, 10, 11) else milliseconds

        return run

    def fail(q, k, v):
        raise RuntimeError("no such shape")

    kernels = {"flash4": kernel("flash4", 1.0), "cudnn": kernel("cudnn", 2.0), "efficient": fail}
    monkeypatch.setattr(module, "_KERNELS", kernels)
    monkeypatch.setattr(module, "_missing", lambda name: None)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    q = OnGPU(100)
    assert module._timed(q, q, q) == {"flash4": 1.0, "cudnn": 2.0}
    assert runs[:4] == ["flash4", "cudnn"] * 2


def test_on_a_cpu_nothing_is_timed_and_the_bits_stay_as_they_are():
    choice, (q, k, v) = Choice(), tensors()
    with choice.learning():
        assert torch.equal(attention(q, k, v, choice), attention(q, k, v))
    assert choice.times == {} and choice.report() == []


def test_a_choice_that_cannot_be_is_refused_before_anything_runs():
    with pytest.raises(ValueError, match="no attention backend 'flash9'; there are auto, flash4"):
        Choice("flash9")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_choice_times_what_is_there_and_leaves_out_what_fails():
    q, k, v = (tensor.to("cuda", torch.bfloat16) for tensor in tensors(width=64))
    choice = Choice()
    with choice.learning():
        attention(q, k, v, choice)
    ((shape, times),) = choice.times.items()
    assert shape == Shape(2, 5, 11, 3, 64, torch.bfloat16) and times["sdpa"] > 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_every_backend_that_is_there_agrees_with_the_plain_one():
    q, k, v = (tensor.to("cuda", torch.bfloat16) for tensor in tensors(width=64))
    for backend, reason in available_backends().items():
        if reason is None:
            torch.testing.assert_close(
                attention(q, k, v, backend).float(), plain(q, k, v).float(), atol=2e-2, rtol=2e-2
            )


def test_slots_together_have_the_bits_that_each_has_alone_in_one_call_where_a_kernel_keeps_them(monkeypatch):
    q, k, v = tensors()
    expected = torch.cat([attention(*(each[slot : slot + 1] for each in (q, k, v))) for slot in range(2)])
    assert torch.equal(attention_each(q, k, v), expected)
    calls, plain_kernel = [], module._KERNELS["sdpa"]
    monkeypatch.setitem(module._KERNELS, "sdpa", lambda q, k, v: (calls.append(len(q)), plain_kernel(q, k, v))[1])
    attention_each(q, k, v)
    monkeypatch.setattr(module, "SAME_IN_COMPANY", ("sdpa",))
    attention_each(q, k, v)
    assert calls == [1, 1, 2]


def test_slots_together_take_the_backend_that_one_alone_takes(monkeypatch):
    timed_as(monkeypatch, lambda keys: {"sdpa": 1.0})
    choice, (q, k, v) = Choice(), tensors()
    monkeypatch.setattr(choice, "of", lambda *each: "sdpa" if len(each[0]) == 1 else pytest.fail("asked for two"))
    assert attention_each(q, k, v, choice).shape == q.shape


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("name", module.SAME_IN_COMPANY)
@pytest.mark.parametrize("keys", [6240, 28080])
def test_a_kernel_that_takes_slots_together_gives_each_the_bits_that_it_has_alone(name, keys):
    if reason := available_backends()[name]:
        pytest.skip(f"needs {name}: {reason}")
    torch.manual_seed(0)
    q = torch.randn(2, 6240, 12, 128, device="cuda", dtype=torch.bfloat16)
    k, v = torch.randn(2, 2, 32000, 12, 128, device="cuda", dtype=torch.bfloat16)[:, :, :keys]
    together = attention_each(q, k, v, name)
    assert torch.equal(together[0], attention_each(q[:1], k[:1], v[:1], name)[0])
    assert torch.equal(together[1], attention_each(q[1:], k[1:], v[1:], name)[0])


def test_on_a_hopper_gpu_whoever_lacks_flash_attention_is_told_what_brings_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(module, "keep_on_disk", lambda: None)
    monkeypatch.setitem(sys.modules, "flash_attn", None)  # as if it were not there
    missing = module._missing.__wrapped__
    module._flash_function.cache_clear()
    assert missing("flash4").endswith("chunkcast's extra 'hopper' brings it")
    assert missing("flash2").endswith("chunkcast's extra 'cuda' brings it")
