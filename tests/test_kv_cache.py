import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import kv_cache
from pipeline.kv_cache import KVCache, Span, sink_beside_chunk

TOKENS, HEADS, WIDTH = 2, 2, 6


def make(window, sink, slots=1, tokens=TOKENS, **options):
    return KVCache(1, slots, window, sink, tokens, HEADS, WIDTH, torch.float32, "cpu", **options)


def naive(q, keys, values):
    keys, values = torch.cat(keys), torch.cat(values)
    scores = torch.einsum("lhd,shd->hls", q, keys) / WIDTH**0.5
    return torch.einsum("hls,shd->lhd", scores.softmax(-1), values)


def chunk_of(frames, tokens=TOKENS):
    return torch.randn(3, frames * tokens, HEADS, WIDTH)


def seen_frames(history, window, sink):
    """What a window with a sink holds, by its definition: the first and the newest frames."""
    return history if len(history) <= window else history[:sink] + history[len(history) - (window - sink) :]


@pytest.mark.parametrize(
    "window, sink, chunk", [(4, 1, 1), (4, 0, 2), (7, 2, 3), (5, 0, 3), (8, 3, 3), (3, 0, 3), (12, 3, 3), (9, 4, 2)]
)
def test_the_ring_attends_to_the_sink_and_the_newest_frames_and_nothing_else(window, sink, chunk):
    torch.manual_seed(0)
    cache = make(window, sink)
    keys, values = [], []
    for _ in range(9):
        view = cache.view([0], chunk, 1, TOKENS)
        for _ in range(2):  # a denoising pass, which the pass after it overwrites
            q, k, v = chunk_of(chunk)
            result = view.attend(0, q[None], k[None], v[None])[0]
        keys += k.split(TOKENS)
        values += v.split(TOKENS)
        cache.advance([0], chunk)
        expected = naive(q, seen_frames(keys, window, sink), seen_frames(values, window, sink))
        torch.testing.assert_close(result, expected)


class ShiftingCache:
    """The cache as the reference keeps it: rows in the order of time, all behind the sink moved left on eviction."""

    def __init__(self, window, sink, tokens):
        self.size, self.sink = window * tokens, sink * tokens
        self.k = self.v = torch.empty(0, HEADS, WIDTH)

    def attend(self, q, k, v):
        self.k, self.v = self._appended(self.k, k), self._appended(self.v, v)
        return naive(q, [self.k], [self.v])

    def _appended(self, rows, new):
        evicted = max(0, len(rows) + len(new) - self.size)
        return torch.cat((rows[: self.sink], rows[self.sink + evicted :], new))


@st.composite
def streams(draw):
    """Window, sink, tokens a frame and the lengths of the stream's chunks, all that fit together."""
    window = draw(st.integers(1, 9))
    sink = draw(st.integers(0, window - 1))
    chunks = draw(st.lists(st.integers(1, window - sink), min_size=1, max_size=12))
    return window, sink, draw(st.integers(1, 3)), chunks


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(streams())
def test_the_ring_gives_what_a_cache_that_moves_its_rows_gives(stream):
    window, sink, tokens, chunks = stream
    torch.manual_seed(0)
    ring, shifting = make(window, sink, tokens=tokens), ShiftingCache(window, sink, tokens)
    for frames in chunks:
        q, k, v = chunk_of(frames, tokens)
        result = ring.view([0], frames, 1, tokens).attend(0, q[None], k[None], v[None])[0]
        ring.advance([0], frames)
        torch.testing.assert_close(result, shifting.attend(q, k, v))


def test_a_stream_moves_and_allocates_no_rows():
    cache = make(6, 2)
    places = cache.k.data_ptr(), cache.v.data_ptr()
    kept = None
    for number in range(20):
        k = torch.full((1, 2 * TOKENS, HEADS, WIDTH), float(number))
        cache.view([0], 2, 1, TOKENS).attend(0, k, k, k)
        cache.advance([0], 2)
        rows = cache.k[0, 0, :, 0, 0]
        changed = TOKENS * 6 if kept is None else int((rows != kept).sum())
        assert number < 1 or changed == 2 * TOKENS  # the chunk's own and no other
        kept = rows.clone()
    assert places == (cache.k.data_ptr(), cache.v.data_ptr())


def filled(window, sink, frames, **options):
    """A cache after `frames` latent frames, one a chunk, and their keys and values."""
    cache, keys, values = make(window, sink, **options), [], []
    for _ in range(frames):
        q, k, v = chunk_of(1)
        cache.view([0], 1, 1, TOKENS).attend(0, q[None], k[None], v[None])
        keys.append(k)
        values.append(v)
        cache.advance([0], 1)
    return cache, keys, values


@pytest.mark.parametrize("frame, oldest, seen", [(8, 7, [0, 7, 8]), (9, 7, [0, 7, 8, 9]), (7, 7, [0, 7]), (0, 7, [0])])
def test_a_frame_of_the_past_sees_the_sink_and_what_was_before_it(frame, oldest, seen):
    torch.manual_seed(0)
    cache, keys, values = filled(window=5, sink=1, frames=10)
    q, keys[frame], values[frame] = chunk_of(1)
    view = cache.past_view(0, frame, 1, oldest, 1, TOKENS)
    result = view.attend(0, q[None], keys[frame][None], values[frame][None])[0]
    torch.testing.assert_close(result, naive(q, [keys[i] for i in seen], [values[i] for i in seen]))
    assert cache.position(0) == 10
    q, k, v = chunk_of(1)  # and the next chunk sees it as it was written last
    result = cache.view([0], 1, 1, TOKENS).attend(0, q[None], k[None], v[None])[0]
    held = [0, 7, 8, 9]
    torch.testing.assert_close(result, naive(q, [*(keys[i] for i in held), k], [*(values[i] for i in held), v]))


def test_the_newest_frames_past_view_is_the_view_it_was_made_with():
    cache = make(5, 1)
    cache.advance([0], 9)
    view = cache.view([0], 2, 1, TOKENS)
    assert cache.past_view(0, 9, 2, 0, 1, TOKENS).slots == view.slots


def test_a_silent_view_writes_nothing():
    torch.manual_seed(0)
    cache, *_ = filled(4, 1, 6)
    before = cache.k.clone()
    cache.view([0], 1, 1, TOKENS).silent().attend(0, *chunk_of(1)[:, None])
    assert torch.equal(before, cache.k)


def test_slots_at_different_positions_do_not_see_each_other():
    torch.manual_seed(0)
    company, alone = make(4, 1, slots=2), make(4, 1)
    for number in range(8):
        q, k, v = torch.randn(3, 2, TOKENS, HEADS, WIDTH)
        if number >= 3:  # the stranger joins later
            together = company.view([0, 1], 1, 1, TOKENS).attend(0, q, k, v)[:1]
            company.advance([0, 1], 1)
        else:
            together = company.view([0], 1, 1, TOKENS).attend(0, q[:1], k[:1], v[:1])
            company.advance([0], 1)
        solo = alone.view([0], 1, 1, TOKENS).attend(0, q[:1], k[:1], v[:1])
        alone.advance([0], 1)
        assert torch.equal(together, solo)
    assert (company.position(0), company.position(1)) == (8, 5)


def test_a_reset_slot_sees_nothing_of_the_stream_before():
    torch.manual_seed(0)
    used, fresh = make(4, 1), make(4, 1)
    for _ in range(6):
        used.view([0], 1, 1, TOKENS).attend(0, *chunk_of(1)[:, None])
        used.advance([0], 1)
    used.reset(0)
    q, k, v = chunk_of(1)[:, None]
    again = used.view([0], 1, 1, TOKENS).attend(0, q, k, v)
    assert torch.equal(again, fresh.view([0], 1, 1, TOKENS).attend(0, q, k, v))


def test_positions_are_absolute_and_a_view_holds_one_row_of_angles_a_slot():
    cache = make(4, 1, slots=2)
    cache.advance([1], 5000)
    cos, _ = cache.view([0, 1], 2, 1, TOKENS).rope
    assert cos.shape == (2, 2 * TOKENS, WIDTH // 2)
    assert torch.equal(cos[1, ::TOKENS, 0], torch.tensor([5000.0, 5001.0], dtype=torch.float64).cos().float())


def test_a_chunk_with_no_room_beside_the_sink_is_refused():
    with pytest.raises(ValueError, match="a chunk of 3 latent frames has no room"):
        make(4, 2).view([0], 3, 1, TOKENS)
    with pytest.raises(ValueError, match="must be smaller than the window"):
        make(4, 4)


def test_the_chunk_takes_the_sinks_last_frames_where_both_do_not_fit():
    assert sink_beside_chunk(7, 2, 3) == 2
    assert sink_beside_chunk(4, 2, 3) == 1
    with pytest.raises(ValueError, match="does not fit into a window of 2"):
        sink_beside_chunk(2, 0, 3)


def fp8(scale=4.0):
    return {"value_scales": [scale]}


def off(found, expected):
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("scale", [0.25, 4.0])
def test_with_attention_in_fp8_a_chunk_sees_the_same_and_is_a_little_off(scale):
    torch.manual_seed(0)
    cache = make(7, 2, **fp8(scale))
    keys, values = [], []
    for _ in range(9):
        q, k, v = chunk_of(3)
        result = cache.view([0], 3, 1, TOKENS).attend(0, q[None], k[None], v[None])[0]
        keys += k.split(TOKENS)
        values += v.split(TOKENS)
        cache.advance([0], 3)
        assert 0.005 < off(result, naive(q, seen_frames(keys, 7, 2), seen_frames(values, 7, 2))) < 0.15
    read = cache.read(0, 0, [Span(0, 2 * TOKENS)])
    assert max(off(read[0], torch.cat(keys[:2])), off(read[1], torch.cat(values[:2]))) < 0.04


def test_with_attention_in_fp8_a_past_that_lies_apart_is_all_that_is_seen():
    torch.manual_seed(0)
    cache, keys, values = filled(5, 1, 10, **fp8())
    q, keys[8], values[8] = chunk_of(1)
    result = cache.past_view(0, 8, 1, 8, 1, TOKENS).attend(0, q[None], keys[8][None], values[8][None])[0]
    assert 0.005 < off(result, naive(q, [keys[0], keys[8]], [values[0], values[8]])) < 0.15


def test_with_attention_in_fp8_a_new_stream_finds_nothing_of_the_last_not_even_what_is_no_number():
    cache = make(5, 1, **fp8())
    for rows in (cache.k, cache.v):
        rows.fill_(float("nan"))
    cache.reset(0)
    assert not cache.k.float().any() and not cache.v.float().any()


def batch_of(cache, slots, frames):
    view = cache.view(slots, frames, 1, TOKENS)
    q, k, v = torch.randn(3, len(slots), frames * TOKENS, HEADS, WIDTH)
    return view.attend(0, q, k, v)


def test_slots_that_see_as_many_rows_are_handed_over_together_and_others_one_by_one(monkeypatch):
    handed = []

    def record(q, k, v, backend):
        handed.append((len(q), k.shape[1]))
        return torch.zeros_like(q)

    monkeypatch.setattr(kv_cache, "attention_each", record)
    monkeypatch.setattr(kv_cache, "attention", lambda *tensors: pytest.fail("a plain cache reads no copies"))
    cache = make(6, 1, slots=3)
    batch_of(cache, [0, 1, 2], 2)
    cache.advance([0, 1], 2)
    for slots in ([0, 1], [1, 2], [0, 2]):
        monkeypatch.setattr(kv_cache, "attention", lambda q, *_: handed.append("alone") or torch.zeros_like(q))
        batch_of(cache, slots, 2)
    assert handed == [(3, 4), (2, 8), *["alone"] * 4]
