"""Seconds by stage, without making the device wait."""

import time

import torch


class Stopwatch:
    """Marks the ends of stages; on a GPU with events on a stream, the current one by default, else with the host's
    clock.

    `begun` is when it was started, by time.monotonic(), the clock that processes share.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self.begun = time.monotonic()
        self._marks = [("", self._now())]

    def mark(self, stage: str, stream: torch.cuda.Stream | None = None) -> None:
        """The stage since the last mark was `stage`."""
        self._marks.append((stage, self._now(stream)))

    def seconds(self) -> dict[str, float]:
        """Seconds by stage and in "total". On a GPU the last mark must have been reached: this waits for it."""
        times = [mark for _, mark in self._marks]
        if self._device.type == "cuda":
            times[-1].synchronize()
            times = [times[0].elapsed_time(event) / 1000 for event in times]
        stages = {
            name: later - earlier for (name, _), earlier, later in zip(self._marks[1:], times, times[1:], strict=False)
        }
        return stages | {"total": times[-1] - times[0]}

    def _now(self, stream: torch.cuda.Stream | None = None) -> float | torch.cuda.Event:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(stream)
        return event
