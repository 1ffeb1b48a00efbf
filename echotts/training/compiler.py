"""TPU compiler options of the train step. They are part of the step, and are also used by `plan`.

An option that libtpu does not know is a compilation error that names it.
"""

from jax.sharding import Mesh

TPU_OPTIONS = {
    # No windowed einsum: over 32 chips each piece of a weight has 32 or 48 rows, but the matrix unit needs 128.
    "xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000",
    # Gather a weight while the preceding products run, in the same fusions ...
    "xla_enable_async_all_gather": "true",
    "xla_tpu_enable_async_collective_fusion": "true",
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": "true",
    "xla_tpu_enable_async_collective_fusion_multiple_steps": "true",  # ... in several if one is too short
    "xla_tpu_overlap_compute_collective_tc": "true",
}


def compiler_options(mesh: Mesh) -> dict[str, str] | None:
    """Options for programs on the mesh's platform; None except on a TPU."""
    return dict(TPU_OPTIONS) if mesh.devices.flat[0].platform == "tpu" else None
