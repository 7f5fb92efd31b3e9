"""A profiler's trace in a page: where the time of a step goes, what launches it, and what makes the host wait.

Takes the JSON that torch.profiler writes (Chrome's trace format; times in microseconds) and needs no torch. On a GPU
the device's kernels and copies are added up; without one, the host operations' own time.
"""

import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

STEP = "chunkcast.begin"
"""The named range of one step; its syncs and launches are those that count."""
RANGES = "chunkcast."
TOP = 15

_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
_CALLS = ("cuda_runtime", "cuda_driver")
_SYNCS = re.compile(r"cuda(Stream|Device|Event|Ctx)?Synchronize|cuCtxSynchronize|aten::(item|_local_scalar_dense)$")
_LAUNCHES = re.compile(r"^(cuda|cu)(LaunchKernel|LaunchCooperativeKernel|GraphLaunch)")
_OF_RANGES = {f"{RANGES}decode": "VAE", f"{RANGES}encode": "VAE", f"{RANGES}text": "text"}
_OF_NAMES = (
    ("NCCL", re.compile(r"nccl", re.I)),
    ("copies", re.compile(r"^(Memcpy|Memset)|aten::(copy_|clone|contiguous|cat|_to_copy)$")),
    ("attention", re.compile(r"flash|fmha|attention|sdpa|sdpfprop", re.I)),
    (
        "matrix products",
        re.compile(r"gemm|gemv|cutlass|nvjet|xmma|cublas|scaled_mm|aten::(mm|addmm|bmm|linear)$", re.I),
    ),
    ("convolutions", re.compile(r"conv", re.I)),
    (
        "norms and modulation",
        re.compile(
            r"norm|elementwise|reduce|triton|^_(quantize|turned_heads|cast|pack|unpack)$"
            r"|aten::(add|mul|sub|addcmul|gelu|silu|lerp)",
            re.I,
        ),
    ),
)
BUCKETS = (
    "attention",
    "matrix products",
    "norms and modulation",
    "VAE",
    "text",
    "convolutions",
    "NCCL",
    "copies",
    "other",
)


@dataclass(frozen=True)
class Event:
    """One span of a trace; microseconds."""

    name: str
    category: str
    thread: Any
    start: float
    length: float
    arguments: Mapping[str, Any]

    @property
    def end(self) -> float:
        return self.start + self.length


def digest(trace: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """What render() prints, as plain data; milliseconds and counts are a step's. `steps` were traced."""
    events = [_event(raw) for raw in trace["traceEvents"] if raw.get("ph") == "X"]
    ranges = _Ranges([e for e in events if e.category == "user_annotation" and e.name.startswith(RANGES)])
    host = [e for e in events if e.category == "cpu_op"]
    work = _device_work(events, ranges) or _host_work(host, ranges)
    calls = [e for e in events if e.category in _CALLS]
    on_device = any(e.category in _DEVICE for e in events)
    return {
        "steps": steps,
        "device": "gpu" if on_device else "cpu",
        "milliseconds": round(_span(events, ranges) / steps / 1000, 3),
        "idle_share": round(_idle_share([e for e in events if e.category in _DEVICE]), 4) if on_device else None,
        "buckets": _buckets(work, steps),
        "top": {bucket: _top([w for w in work if w[0] == bucket], steps) for bucket in BUCKETS},
        "host_operations": round(sum(length for _, length in _own_times(host)) / steps / 1000, 3),
        "ranges": _range_times(ranges, work, steps),
        "launches": round(sum(bool(_LAUNCHES.match(e.name)) for e in calls) / steps, 1),
        "syncs": _syncs([*host, *calls], ranges, steps),
        "blocking_copies": round(_blocking_copies(events, ranges) / steps, 2),
    }


def render(facts: Mapping[str, Any]) -> str:
    """The digest as a page of text."""
    total = sum(facts["buckets"].values()) or 1.0
    where = "on the GPU" if facts["device"] == "gpu" else "of host operations"
    lines = [f"{facts['milliseconds']:.1f} ms a step over {facts['steps']} steps; {total:.1f} ms of work {where}"]
    if facts["idle_share"] is not None:
        lines.append(f"GPU idle {100 * facts['idle_share']:.1f}% of the time, {facts['launches']:.0f} launches a step")
    syncs = ", ".join(f"{name} {count}" for name, count in facts["syncs"].items()) or "none"
    lines.append(f"syncs a step: {syncs}; blocking copies a step: {facts['blocking_copies']}")
    lines.append(f"host operations: {facts['host_operations']:.1f} ms a step")
    lines += ["", "named ranges (ms a step): host / work"]
    lines += [f"  {name:24} {host:9.2f} {work:9.2f}" for name, (host, work) in facts["ranges"].items()]
    if facts.get("attention"):
        lines += ["", "attention, queries x keys: taken (ms by backend)"]
        rows = facts["attention"]
        lines += [f"  {row['queries']} x {row['keys']}: {row['taken']} {row['milliseconds']}" for row in rows]
    for bucket in BUCKETS:
        spent = facts["buckets"].get(bucket, 0.0)
        if spent:
            lines += ["", f"{bucket}: {spent:.2f} ms a step, {100 * spent / total:.1f}%"]
            lines += [
                f"  {row['milliseconds']:9.3f} ms {row['count']:8.1f} x  {row['name']}" for row in facts["top"][bucket]
            ]
    return "\n".join(lines) + "\n"


class _Ranges:
    """The named ranges of each thread, and which one a moment lies in."""

    def __init__(self, ranges: Sequence[Event]):
        self.all = sorted(ranges, key=lambda e: (e.start, -e.length))
        self._by_thread: dict[Any, list[Event]] = defaultdict(list)
        for event in self.all:
            self._by_thread[event.thread].append(event)
        self._starts = {thread: [e.start for e in found] for thread, found in self._by_thread.items()}

    def around(self, thread: Any, moment: float) -> list[str]:
        """The names of the ranges around a moment of a thread, innermost first."""
        found = self._by_thread.get(thread, [])
        last = bisect_right(self._starts.get(thread, []), moment)
        # Ranges nest three deep at the most, so those that can be around it are among the last ones begun.
        return [e.name for e in reversed(found[max(0, last - 16) : last]) if moment <= e.end]


def _event(raw: Mapping[str, Any]) -> Event:
    thread = (raw.get("pid"), raw.get("tid"))
    return Event(raw["name"], raw.get("cat", ""), thread, raw["ts"], raw.get("dur", 0.0), raw.get("args", {}))


Work = tuple[str, str, str, float]
"""Bucket, name, range and microseconds of one piece of work."""


def _device_work(events: Sequence[Event], ranges: _Ranges) -> list[Work]:
    launched = {e.arguments.get("correlation"): e for e in events if e.category in _CALLS}
    found = []
    for event in events:
        if event.category not in _DEVICE:
            continue
        call = launched.get(event.arguments.get("correlation"))
        around = ranges.around(call.thread, call.start) if call else []
        found.append(_sorted_out(event.name, around, event.length))
    return found


def _host_work(host: Sequence[Event], ranges: _Ranges) -> list[Work]:
    return [_sorted_out(e.name, ranges.around(e.thread, e.start), length) for e, length in _own_times(host)]


def _sorted_out(name: str, around: Sequence[str], length: float) -> Work:
    of_range = next((_OF_RANGES[r] for r in around if r in _OF_RANGES), None)
    of_name = next((bucket for bucket, pattern in _OF_NAMES if pattern.search(name)), "other")
    bucket = of_name if of_range is None or of_name == "copies" else of_range
    return bucket, name, around[0] if around else "", length


def _own_times(host: Sequence[Event]) -> list[tuple[Event, float]]:
    """Each operation with the time that is not its callees', microseconds."""
    own: list[tuple[Event, float]] = []
    open_: dict[Any, list[int]] = defaultdict(list)
    for event in sorted(host, key=lambda e: (e.start, -e.length)):
        stack = open_[event.thread]
        while stack and own[stack[-1]][0].end <= event.start:
            stack.pop()
        if stack:
            caller, length = own[stack[-1]]
            own[stack[-1]] = caller, length - event.length
        stack.append(len(own))
        own.append((event, event.length))
    return own


def _span(events: Sequence[Event], ranges: _Ranges) -> float:
    begun = [e.start for e in ranges.all if e.name == STEP]
    ended = [e.end for e in events if e.category in (*_DEVICE, "cpu_op")]
    return max(ended, default=0.0) - min(begun, default=0.0) if begun else 0.0


def _idle_share(device: Iterable[Event]) -> float:
    """The share of the time between the first and the last of the device's work in which no stream worked."""
    busy, first, last = 0.0, None, None
    for event in sorted(device, key=lambda e: e.start):
        first = event.start if first is None else first
        busy += max(0.0, event.end - max(event.start, last if last is not None else event.start))
        last = max(event.end, last) if last is not None else event.end
    return 1 - busy / (last - first) if first is not None and last > first else 0.0


def _buckets(work: Sequence[Work], steps: int) -> dict[str, float]:
    spent: dict[str, float] = defaultdict(float)
    for bucket, _, _, length in work:
        spent[bucket] += length
    return {bucket: round(spent[bucket] / steps / 1000, 3) for bucket in BUCKETS if spent[bucket]}


def _top(work: Sequence[Work], steps: int) -> list[dict[str, Any]]:
    spent: dict[str, list[float]] = defaultdict(list)
    for _, name, _, length in work:
        spent[name[:120]].append(length)
    order = sorted(spent, key=lambda name: -sum(spent[name]))[:TOP]
    return [
        {"name": name, "milliseconds": round(sum(spent[name]) / steps / 1000, 4), "count": len(spent[name]) / steps}
        for name in order
    ]


def _range_times(ranges: _Ranges, work: Sequence[Work], steps: int) -> dict[str, tuple[float, float]]:
    """Milliseconds a step by range: of the host inside it, and of the work whose innermost range it is."""
    host: dict[str, float] = defaultdict(float)
    for event in ranges.all:
        host[event.name] += event.length
    spent: dict[str, float] = defaultdict(float)
    for _, _, name, length in work:
        spent[name] += length
    return {name: (round(host[name] / steps / 1000, 3), round(spent[name] / steps / 1000, 3)) for name in host}


def _syncs(calls: Sequence[Event], ranges: _Ranges, steps: int) -> dict[str, float]:
    counts: dict[str, float] = defaultdict(float)
    for event in calls:
        if _SYNCS.match(event.name) and STEP in ranges.around(event.thread, event.start):
            counts[event.name] += 1 / steps
    return {name: round(count, 2) for name, count in counts.items()}


def _blocking_copies(events: Sequence[Event], ranges: _Ranges) -> int:
    """Copies to or from memory that is not pinned, which the host waits for, begun within a step."""
    launched = {e.arguments.get("correlation"): e for e in events if e.category in _CALLS}
    blocking = (e for e in events if e.category == "gpu_memcpy" and "Pageable" in e.name)
    calls = (launched.get(e.arguments.get("correlation")) for e in blocking)
    return sum(call is not None and STEP in ranges.around(call.thread, call.start) for call in calls)
