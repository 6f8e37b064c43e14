"""Session strictness: 8 CPU devices, rank promotion is an error, Ctrl-C as in a terminal."""

import gc
import importlib.metadata
import os
import pathlib
import signal

# Tests run each program a few times on tiny arrays: making good code would take longer than it saves, and the older
# fusion emitters compile in half the time. XLA ends the process at a flag that it does not know.
os.environ["XLA_FLAGS"] = (
    "--xla_backend_optimization_level=0 "
    + os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8"
    + (" --xla_cpu_use_fusion_emitters=false" if importlib.metadata.version("jaxlib").startswith("0.10.") else "")
)
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
# Tracing makes many objects, and the tests' time shows how often cycles among them are looked for.
gc.freeze()
gc.set_threshold(100_000, 50, 50)
# A shell lets what it starts in the background ignore Ctrl-C, and tests of Ctrl-C would wait in vain.
signal.signal(signal.SIGINT, signal.default_int_handler)


# Files whose tests start whole programs, few and long: begun last, one of them would run alone to the end.
FIRST = ("multidevice", "multiprocess", "end_to_end", "resume", "touched_rows", "compare", "cold", "benchmarks")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.stem.removeprefix("test_") not in FIRST)


MAPS = pathlib.Path("/proc/self/maps")  # where there is none, nothing limits them


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """A Linux process may map 65,530 pieces of memory, and all programs of all tests together take more."""
    yield
    if MAPS.exists() and MAPS.read_bytes().count(b"\n") > 30_000:
        jax.clear_caches()
