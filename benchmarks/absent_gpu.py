"""An NVIDIA GPU that need not be there, to compile for.

XLA compiles for a GPU of which it has a description. What the program consists of and the memory that it needs are then
known, though not how long it takes. JAX's CUDA plugin must be installed (`pip install "jax[cuda12]"`), a driver not.
"""

import contextlib
from collections.abc import Iterator
from unittest import mock

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from maskdino_jax.meshes import make_mesh
from maskdino_jax.ops import deform_attn

# NVIDIA's figures of an H200 SXM, in the format of XLA's GpuTargetConfigProto.
_H200 = """
platform_name: "CUDA"
device_description_str: "NVIDIA H200"
dnn_version_info { major: 9 minor: 10 }
runtime_version { major: 12 minor: 9 }
gpu_device_info {
  cuda_compute_capability { major: 9 }
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  memory_bandwidth: 4800000000000
  device_memory_size: 151397597184
  l2_cache_size: 52428800
  shared_memory_per_core: 233472
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  threads_per_core_limit: 2048
  threads_per_block_limit: 1024
  threads_per_warp: 32
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
}
"""


@contextlib.contextmanager
def absent_gpus(count: int = 1) -> Iterator[Mesh]:
    """A mesh of H200s. What is traced, lowered and compiled inside is for them and has the GPU kernels.

    Raises:
        RuntimeError: JAX has no CUDA plugin.
    """
    try:
        topology = topologies.get_topology_desc("h200", "cuda", target_config=_H200, topology=f"1x1x{count}")
    except NotImplementedError as error:
        raise RuntimeError('to compile for a GPU, install JAX\'s CUDA plugin: pip install "jax[cuda12]"') from error
    mesh = make_mesh(1, list(topology.devices))
    kernel = mock.patch.object(deform_attn, "runs_kernel", lambda impl, dtype: impl != "xla")
    with kernel, jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        yield mesh
