"""GPUs that need not be here: what XLA has to know of a kind to compile for it."""

import dataclasses
import os
import re
from typing import Any

GIB = 2**30
# Nothing can be timed where there is no GPU, and Triton's products need that; so these are cuBLAS's as they come.
COMPILER_OPTIONS = {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}
# Versions of CUDA and cuDNN, which the choice of a few kernels depends on.
_RUNTIME, _DNN = (13, 0), (9, 8)


@dataclasses.dataclass(frozen=True)
class Kind:
    """Figures of the vendor's data sheet and architecture guide.

    Attributes:
      memory, l2: bytes; bandwidth: of the memory, bytes/s.
      shared: bytes of shared memory of a multiprocessor; a block can have all but 1 KiB of it.
      lanes: float32 units of a multiprocessor.
    """

    name: str
    capability: tuple[int, int]
    multiprocessors: int
    memory: int
    bandwidth: int
    l2: int
    shared: int
    lanes: int
    ghz: float


KINDS = {
    "a100": Kind("NVIDIA A100-SXM4-80GB", (8, 0), 108, 80 * GIB, 2_039 * 10**9, 40 * 2**20, 164 * 1024, 64, 1.41),
    "h100": Kind("NVIDIA H100 80GB HBM3", (9, 0), 132, 79 * GIB, 3_352 * 10**9, 50 * 2**20, 228 * 1024, 128, 1.98),
    "h200": Kind("NVIDIA H200", (9, 0), 132, 140 * GIB, 4_800 * 10**9, 60 * 2**20, 228 * 1024, 128, 1.98),
}
_TOPOLOGY = re.compile(rf"({'|'.join(KINDS)}):(?:(\d+)x)?(\d+)")


def is_described(topology: str) -> bool:
    """Whether it names GPUs of a kind: "h200:8", one host of eight, or "h100:4x8", four of them."""
    return _TOPOLOGY.fullmatch(topology) is not None


def described_devices(topology: str) -> list[Any]:
    """Devices of such a topology. Whatever jax raises where its plugin for CUDA is not installed."""
    from jax.experimental import topologies  # costs half a second

    # The plugin looks for a driver when it is loaded, and without one refuses to be.
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    kind, hosts, devices = _TOPOLOGY.fullmatch(topology).groups()
    how = dict(target_config=target(KINDS[kind]), topology=f"1x{hosts or 1}x{devices}")
    return list(topologies.get_topology_desc(platform="cuda", **how).devices)


def target(kind: Kind) -> str:
    """The kind as XLA's GpuTargetConfig, a protocol buffer's text."""
    (major, minor), features = kind.capability, " feature_extension: ACCELERATED_FEATURES" * (kind.capability[0] == 9)
    return f"""
        gpu_device_info {{
          cuda_compute_capability {{ major: {major} minor: {minor}{features} }}
          core_count: {kind.multiprocessors} fpus_per_core: {kind.lanes} clock_rate_ghz: {kind.ghz}
          device_memory_size: {kind.memory} memory_bandwidth: {kind.bandwidth} l2_cache_size: {kind.l2}
          shared_memory_per_core: {kind.shared} shared_memory_per_block_optin: {kind.shared - 1024}
          shared_memory_per_block: 49152
          threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
          registers_per_core_limit: 65536 registers_per_block_limit: 65536
          block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
        }}
        platform_name: "CUDA"
        dnn_version_info {{ major: {_DNN[0]} minor: {_DNN[1]} }}
        runtime_version {{ major: {_RUNTIME[0]} minor: {_RUNTIME[1]} patch: 0 }}
        device_description_str: "{kind.name}"
    """
