"""The names of devices in configs and options: ``auto``, ``cpu`` and ``cuda``."""

import torch

from data_pipelines.errors import UserError


def means_gpu(name: str, *, option: str, on_cpu: str) -> bool:
    """Whether a name means a GPU: ``cuda`` does, and ``auto`` where Torch sees one.

    Args:
        option: What the user set to ``name``, for the message.
        on_cpu: How to do without a GPU, for the message.

    Raises:
        UserError: The name is ``cuda``, and Torch sees no GPU.
    """
    if name == "cpu":
        return False
    found = torch.cuda.is_available()
    if name == "cuda" and not found:
        raise UserError(
            f"{option} is cuda, and Torch sees no GPU: `recsys doctor` says which build is installed; {on_cpu}, or "
            "install the build for your GPU."
        )
    return found
