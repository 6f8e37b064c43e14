"""Where a device's time goes: what runs on it during some calls, by name, from the profiler's own trace."""

import collections
import pathlib
import tempfile
import time
from collections.abc import Callable

import jax
from jax.profiler import ProfileData


def device_time(call: Callable[[], object], *, calls: int = 5) -> dict[str, object]:
    """Of some calls in a row: share of the time in which the device is busy, programs started, and the longest by name.

    Returns:
      {"busy": share, "launches": per call, "kernels": {name: share of the busy time}}, the ten longest; empty where
      the profiler sees no device of its own (a CPU).
    """
    jax.block_until_ready(call())
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            start = time.perf_counter()
            for _ in range(calls):
                result = call()
            jax.block_until_ready(result)
            elapsed = time.perf_counter() - start
        files = list(pathlib.Path(folder).rglob("*.xplane.pb"))
        spans = [span for file in files for span in _spans(ProfileData.from_file(str(file)))]
    if not spans:
        return {}
    totals: dict[str, float] = collections.Counter()
    for name, first, last in spans:
        totals[name] += last - first
    total, busy = sum(totals.values()), _union([(first, last) for _, first, last in spans])
    longest = sorted(totals.items(), key=lambda item: -item[1])[:10]
    shares = {name: round(spent / total, 3) for name, spent in longest}
    return {"busy": busy / 1e9 / elapsed, "launches": len(spans) / calls, "kernels": shares}


def _spans(profile: ProfileData) -> list[tuple[str, float, float]]:
    """(name, first, last nanosecond) of what ran on the streams of the devices."""
    planes = [plane for plane in profile.planes if plane.name.startswith("/device:GPU")]
    lines = [line for plane in planes for line in plane.lines if line.name.startswith("Stream")]
    return [(event.name, event.start_ns, event.start_ns + event.duration_ns) for line in lines for event in line.events]


def _union(spans: list[tuple[float, float]]) -> float:
    """Time that is covered by at least one of them."""
    covered, end = 0.0, float("-inf")
    for first, last in sorted(spans):
        covered += max(0.0, last - max(first, end))
        end = max(end, last)
    return covered
