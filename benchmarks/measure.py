"""How every benchmark measures: the minimum and the median of repeated calls, the device, one JSON line per result."""

import json
import platform
import statistics
import time
from collections.abc import Callable

import jax


def seconds(call: Callable[[], object], *, repeats: int, warmup: int = 1) -> dict[str, float]:
    """Seconds per call, results waited for: {"min", "median"}."""
    for _ in range(warmup):
        jax.block_until_ready(call())
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - start)
    return {"min": min(times), "median": statistics.median(times)}


def emit(name: str, **values: object) -> None:
    """Prints one result with the device it was measured on."""
    device = jax.devices()[0]
    where = {"device": device.device_kind, "devices": jax.device_count(), "machine": platform.machine()}
    print(json.dumps({"benchmark": name, **where, "jax": jax.__version__, **values}), flush=True)
