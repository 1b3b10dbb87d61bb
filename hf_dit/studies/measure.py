"""Times and memory of calls, beside each other."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

Call = tuple[str, str]  # level and attention

BASELINE = "full"
SHORTEST_SAMPLE = 0.01  # seconds; what is faster is called several times for one sample
MOST_CALLS = 100


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


class PeakMemory:
    """The most memory in use between entry and exit, of a device or, for the CPU, of this process.

    `kind` says what `bytes` is: `"cuda_max_memory_allocated"`, tensors of this process on that GPU, or
    `"process_peak_resident_set"`, all that the process holds in RAM, libraries included. Where neither can be read
    (no Linux, another accelerator), both are None.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.kind: str | None = None
        self.bytes: int | None = None

    def __enter__(self) -> "PeakMemory":
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            self.kind = "cuda_max_memory_allocated"
        elif self.device.type == "cpu":
            try:
                Path("/proc/self/clear_refs").write_text("5")  # sets the high-water mark to what is held now
            except OSError:
                return self
            self.kind = "process_peak_resident_set"
        return self

    def __exit__(self, *exception: object) -> None:
        if self.kind == "cuda_max_memory_allocated":
            torch.cuda.synchronize(self.device)
            self.bytes = torch.cuda.max_memory_allocated(self.device)
        elif self.kind == "process_peak_resident_set":
            status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
            self.bytes = 1024 * int(status["VmHWM"].split()[0])


def measure(
    calls: Mapping[Call, Callable[[], object]],
    repeats: int,
    device: torch.device,
    prepare: Callable[[Call], object] = lambda call: None,
) -> dict[Call, dict]:
    """Times of the calls, taken in turn: each repeat times every one, so that the machine's noise hits all alike.

    Before that each is called twice; a RuntimeError then (memory, a kernel that does not compile) is the reason why
    its row has no times, and the others go on. What takes less than 10 ms is called several times for one sample.

    Args:
        calls: by level and attention; those of an attention are compared with `"full"` on the same level.
        repeats: samples of each.
        device: what the calls work on.
        prepare: called with a call's key before its samples, outside of their time.

    Returns:
        For each call `ms`, `ms_min`, `ms_max`: median and range of `samples`; `speedup`, `speedup_min`, `speedup_max`:
        of the ratios to full attention in the same repeat, None without it; `peak_bytes`: allocated beyond what was
        before, on CUDA; `unavailable`: None or the reason.
    """
    counts, reasons = {}, {}
    for key, call in calls.items():
        prepare(key)
        try:
            call()
            counts[key] = min(MOST_CALLS, int(SHORTEST_SAMPLE / _seconds(call, 1, device)) + 1)
        except RuntimeError as error:
            reasons[key] = one_line(error)
    samples: dict[Call, list[float]] = {key: [] for key in counts}
    for _ in range(repeats):
        for key, count in counts.items():
            prepare(key)
            samples[key].append(1000 * _seconds(calls[key], count, device))
    rows = {key: empty_row(reasons.get(key)) for key in calls}
    for key, values in samples.items():
        rows[key] |= {"samples": values, **_median_and_range("ms", values)}
        baseline = samples.get((key[0], BASELINE))
        if baseline is not None:
            ratios = [full / own for full, own in zip(baseline, values, strict=True)]
            rows[key] |= _median_and_range("speedup", ratios)
        if device.type == "cuda":
            prepare(key)
            before = torch.cuda.memory_allocated(device)
            with PeakMemory(device) as peak:
                calls[key]()
            rows[key]["peak_bytes"] = (peak.bytes or 0) - before
    return rows


def empty_row(reason: str | None) -> dict:
    """A row of [`measure`] without figures, and the reason for it."""
    names = [f"{figure}{end}" for figure in ("ms", "speedup") for end in ("", "_min", "_max")]
    return {**dict.fromkeys(names), "samples": [], "peak_bytes": None, "unavailable": reason}


def _seconds(call: Callable[[], object], count: int, device: torch.device) -> float:
    synchronize(device)
    start = time.perf_counter()
    for _ in range(count):
        call()
    synchronize(device)
    return (time.perf_counter() - start) / count


def _median_and_range(name: str, values: Sequence[float]) -> dict:
    return {name: statistics.median(values), f"{name}_min": min(values), f"{name}_max": max(values)}


def one_line(error: Exception) -> str:
    """The first line of what an error says, or its type."""
    return " ".join((str(error).strip() or type(error).__name__).splitlines()[0].split())
