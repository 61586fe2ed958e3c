"""Which device an actor trains on."""

from collections.abc import Sequence

from fednar_ray.errors import DeviceError


def choose_device(assigned: Sequence[str], cuda_devices: int) -> str:
    """The torch device for the accelerators that Ray assigned, of which torch sees ``cuda_devices``.

    Without an assignment the CPU, even where a GPU exists: it belongs to somebody else.  Ray shows an actor
    only its own GPUs, so an assigned one is ``cuda:0``.  Raises DeviceError for a GPU that torch cannot use.
    """
    if not assigned:
        return "cpu"
    if cuda_devices < 1:
        raise DeviceError(
            f"Ray assigned GPU {', '.join(assigned)}, and this torch sees no CUDA device; "
            "install a CUDA build of torch on that node, or set execution.gpus_per_actor=0"
        )
    return "cuda:0"
