"""Options of the TPU compiler for the train step. They travel with the step, however it is started, and into `plan`.

An option that libtpu does not know is an error of the compilation, which names it.
"""

from jax.sharding import Mesh

TPU_OPTIONS = {
    # No einsum in windows: over 32 chips each piece of a weight is 32 or 48 rows, and the matrix unit wants 128.
    "xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000",
    # A weight is gathered while the products before it run, in the same fusions ...
    "xla_enable_async_all_gather": "true",
    "xla_tpu_enable_async_collective_fusion": "true",
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": "true",
    "xla_tpu_enable_async_collective_fusion_multiple_steps": "true",  # ... in several, where one is too short
    "xla_tpu_overlap_compute_collective_tc": "true",
}


def compiler_options(mesh: Mesh) -> dict[str, str] | None:
    """Of programs for the mesh's platform: None but on a TPU."""
    return dict(TPU_OPTIONS) if mesh.devices.flat[0].platform == "tpu" else None
