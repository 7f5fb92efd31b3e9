import pytest
import torch

from kernels.attention import attention, available_backends


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


@pytest.mark.parametrize("backend", ["flash4", "flash2", "cudnn"])
def test_a_gpu_backend_says_why_it_does_not_take_cpu_tensors(backend):
    with pytest.raises(ValueError, match=f"'{backend}' cannot run: "):
        attention(*tensors(), backend=backend)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_every_backend_that_is_there_agrees_with_the_plain_one():
    q, k, v = (tensor.to("cuda", torch.bfloat16) for tensor in tensors(width=64))
    for backend, reason in available_backends().items():
        if reason is None:
            torch.testing.assert_close(
                attention(q, k, v, backend).float(), plain(q, k, v).float(), atol=2e-2, rtol=2e-2
            )
