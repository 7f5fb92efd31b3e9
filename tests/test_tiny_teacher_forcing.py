"""Training sees what the stream will show: the parallel pass over a clip equals the cache, chunk by chunk."""

import pytest
import torch

from pipeline.kv_cache import KVCache
from pipeline.tiny.teacher_forcing import STREAMS, alone, teacher_forcing
from pipeline.transformer import TextTerms, Transformer, TransformerConfig

CHUNKS, WINDOW, ROWS, COLUMNS = 5, 3, 2, 3
CONFIG = TransformerConfig(
    dim=48, ffn_dim=64, heads=2, layers=2, in_channels=4, out_channels=4, text_dim=8, text_rows=3
)


@pytest.fixture(scope="module")
def model() -> Transformer:
    torch.manual_seed(0)
    return Transformer(CONFIG).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def clip() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Clean and noisy chunks (N, 4, h, w) and a prompt's rows (1, 3, 8)."""
    torch.manual_seed(1)
    return (
        torch.randn(CHUNKS, 4, 2 * ROWS, 2 * COLUMNS),
        torch.randn(CHUNKS, 4, 2 * ROWS, 2 * COLUMNS),
        torch.randn(1, 3, 8),
    )


def in_parallel(model: Transformer, clip: tuple, past: bool) -> torch.Tensor:
    clean, noisy, rows = clip
    memory = teacher_forcing(torch.tensor([past]), CHUNKS, WINDOW, (ROWS, COLUMNS), CONFIG.head_width)
    text = [TextTerms(*(x.expand(2 * CHUNKS, -1, -1, -1) for x in layer)) for layer in model.embed_text(rows)]
    time = model.embed_time(torch.tensor([0.0] * CHUNKS + [700.0] * CHUNKS))
    flow = model(torch.cat((clean, noisy)).unsqueeze(2), time, text, None, memory)
    return flow.squeeze(2).unflatten(0, (STREAMS, CHUNKS))[1]


def as_a_stream(model: Transformer, clip: tuple, past: bool) -> torch.Tensor:
    clean, noisy, rows = clip
    tokens = ROWS * COLUMNS
    cache = KVCache(CONFIG.layers, 1, WINDOW, 0, tokens, CONFIG.heads, CONFIG.head_width, torch.float32, "cpu")
    text, flows = model.embed_text(rows), []
    for index in range(CHUNKS):
        if not past:
            cache.reset(0)
        view = cache.view([0], 1, ROWS, COLUMNS)
        flows.append(model(noisy[None, index].unsqueeze(2), model.embed_time(torch.tensor([700.0])), text, None, view))
        model(clean[None, index].unsqueeze(2), model.embed_time(torch.tensor([0.0])), text, None, view)
        cache.advance([0], 1)
    return torch.cat(flows).squeeze(2)


@pytest.mark.parametrize("past", [True, False], ids=["with a past", "without one"])
def test_the_parallel_pass_equals_the_stream(model, clip, past):
    error = (in_parallel(model, clip, past) - as_a_stream(model, clip, past)).abs().max()
    assert error < 1e-5


def test_chunks_alone_equal_the_stream_without_a_past(model, clip):
    _, noisy, rows = clip
    text = [TextTerms(*(x.expand(CHUNKS, -1, -1, -1) for x in layer)) for layer in model.embed_text(rows)]
    memory = alone(CHUNKS, (ROWS, COLUMNS), CONFIG.head_width, torch.device("cpu"))
    flow = model(noisy.unsqueeze(2), model.embed_time(torch.full((CHUNKS,), 700.0)), text, None, memory).squeeze(2)
    assert (flow - as_a_stream(model, clip, past=False)).abs().max() < 1e-5


def test_a_chunk_sees_neither_its_own_truth_nor_what_comes_after(model, clip):
    clean, noisy, rows = clip
    other = clean.clone()
    other[2:] += 1
    before, after = (in_parallel(model, (c, noisy, rows), True) for c in (clean, other))
    torch.testing.assert_close(before[:3], after[:3])
    assert (before[3] - after[3]).abs().max() > 1e-4


def test_a_chunk_does_not_see_beyond_the_window(model, clip):
    clean, noisy, rows = clip
    other = clean.clone()
    other[0] += 1
    before, after = (in_parallel(model, (c, noisy, rows), True) for c in (clean, other))
    # Two layers reach two windows back through the clean stream, and not one chunk more.
    reach = 1 + CONFIG.layers * (WINDOW - 1)
    torch.testing.assert_close(before[reach:], after[reach:])
