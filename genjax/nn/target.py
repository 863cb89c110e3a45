"""Which kind of device a program is traced for."""

import jax


def target_platform() -> str:
    """The platform of the program being traced: "cpu", "gpu" or "tpu".

    That of the mesh in effect, which may lie on devices that this machine does not have (a program
    compiled ahead for a pod); without a mesh, that of the default device.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    platform = None if device is None else device.platform
    return jax.default_backend() if platform is None else platform
