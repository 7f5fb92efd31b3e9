"""pipeline/digest.py on small traces made by hand, and `profile_engine` on the small engine."""

import json

import pytest
from test_engine import small_engine

from pipeline.digest import digest, render
from pipeline.profiling import profile_engine


def event(name, category, start, length, thread=1, **arguments):
    return {
        "ph": "X", "name": name, "cat": category, "pid": 1, "tid": thread, "ts": start, "dur": length, "args": arguments
    }  # fmt: skip


def launch(correlation, start, thread=1):
    return event("cudaLaunchKernel", "cuda_runtime", start, 1, thread, correlation=correlation)


def gpu_trace():
    """One step: a matrix product and an attention kernel, then a decode on another stream, then 25 us of nothing."""
    return {
        "traceEvents": [
            event("chunkcast.begin", "user_annotation", 0, 100),
            event("chunkcast.denoise", "user_annotation", 5, 40),
            event("chunkcast.decode", "user_annotation", 50, 20),
            launch(1, 10), launch(2, 20), launch(3, 55),
            event("sm90_xmma_gemm_bf16", "kernel", 100, 50, 7, correlation=1),
            event("flash_fwd_kernel", "kernel", 150, 25, 7, correlation=2),
            event("implicit_convolve_sgemm", "kernel", 200, 50, 8, correlation=3),
            event("aten::addmm", "cpu_op", 10, 8), event("aten::empty", "cpu_op", 12, 3),
        ]
    }  # fmt: skip


def test_device_time_is_sorted_by_kernel_and_by_the_range_that_launched_it():
    facts = digest(gpu_trace(), steps=1)
    assert facts["buckets"] == {"attention": 0.025, "matrix products": 0.05, "VAE": 0.05}
    assert facts["ranges"]["chunkcast.denoise"] == (0.04, 0.075)
    assert facts["ranges"]["chunkcast.decode"] == (0.02, 0.05)
    assert facts["device"] == "gpu" and facts["launches"] == 3


@pytest.mark.parametrize("name", ["_norm", "_turned_heads", "_quantize", "_cast", "_pack", "_unpack"])
def test_kernels_of_our_own_between_the_products_are_counted_as_what_they_do(name):
    trace = {"traceEvents": [event("chunkcast.begin", "user_annotation", 0, 100), event(name, "kernel", 10, 50, 7)]}
    assert digest(trace, steps=1)["buckets"] == {"norms and modulation": 0.05}


def test_idle_is_the_time_in_which_no_stream_works():
    assert digest(gpu_trace(), steps=1)["idle_share"] == round(25 / 150, 4)
    overlapping = gpu_trace()
    overlapping["traceEvents"].append(event("elementwise", "kernel", 160, 45, 9))
    assert digest(overlapping, steps=1)["idle_share"] == 0


@pytest.mark.parametrize(
    "guilty",
    [
        event("aten::item", "cpu_op", 30, 1),
        event("cudaStreamSynchronize", "cuda_runtime", 30, 1),
        event("cudaDeviceSynchronize", "cuda_runtime", 30, 1),
    ],
    ids=lambda guilty: guilty["name"],
)
def test_a_sync_within_a_step_is_counted_and_one_of_another_thread_is_not(guilty):
    trace = gpu_trace()
    assert digest(trace, steps=1)["syncs"] == {}
    trace["traceEvents"].append(guilty | {"tid": 2})
    assert digest(trace, steps=1)["syncs"] == {}
    trace["traceEvents"].append(guilty)
    assert digest(trace, steps=1)["syncs"] == {guilty["name"]: 1}


def test_a_copy_from_pageable_memory_within_a_step_is_counted_as_blocking():
    trace = gpu_trace()
    trace["traceEvents"] += [
        event("cudaMemcpyAsync", "cuda_runtime", 30, 1, correlation=9),
        event("Memcpy HtoD (Pageable -> Device)", "gpu_memcpy", 180, 2, 7, correlation=9),
        event("cudaMemcpyAsync", "cuda_runtime", 31, 1, correlation=10),
        event("Memcpy HtoD (Pinned -> Device)", "gpu_memcpy", 183, 2, 7, correlation=10),
    ]
    assert digest(trace, steps=1)["blocking_copies"] == 1


def test_on_a_cpu_an_operations_own_time_leaves_out_its_callees():
    trace = {"traceEvents": [e for e in gpu_trace()["traceEvents"] if e["cat"] in ("cpu_op", "user_annotation")]}
    facts = digest(trace, steps=1)
    assert facts["device"] == "cpu" and facts["idle_share"] is None
    assert facts["buckets"] == {"matrix products": 0.005, "other": 0.003}


def test_a_profile_of_the_engine_finds_its_ranges_and_writes_its_trace(tmp_path):
    engine, trace = small_engine(), tmp_path / "trace.json"
    facts = profile_engine(engine, sessions=1, chunks=2, trace=trace)
    assert {"chunkcast.begin", "chunkcast.prepare", "chunkcast.denoise", "chunkcast.decode"} == set(facts["ranges"])
    assert facts["buckets"]["matrix products"] > 0 and facts["syncs"] == {}
    assert "matrix products" in render(facts) and json.loads(trace.read_text())["traceEvents"]
    assert engine.step() == [], "its sessions are closed"


def test_a_profile_of_no_chunk_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least 1"):
        profile_engine(small_engine(), sessions=1, chunks=0, trace=tmp_path / "trace.json")
