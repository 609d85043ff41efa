"""Where an artifact is scored: on the CPU, or on a GPU."""

from typing import Literal

import torch

from data_pipelines.errors import UserError
from models.devices import means_gpu
from models.products import computes_bf16

DeviceName = Literal["auto", "cpu", "cuda"]

CPU = torch.device("cpu")


def scoring_device(name: DeviceName) -> torch.device:
    """The device that a name means: ``auto`` is the GPU that Torch sees, or else the CPU.

    Raises:
        UserError: The name is ``cuda``, and Torch sees no GPU.
    """
    on_gpu = means_gpu(name, option="the device", on_cpu="score with device cpu")
    return torch.device("cuda", torch.cuda.current_device()) if on_gpu else CPU


def described(device: torch.device) -> str:
    """The device and, on a GPU, the precision of the dense part, such as ``cuda (bf16)``."""
    if device.type == "cpu":
        return "cpu"
    return f"{device.type} ({'bf16' if computes_bf16(device) else 'fp32'})"


def check_room(needed: int, device: torch.device) -> None:
    """Refuse to copy tables to a GPU that has no room for them.

    Raises:
        UserError: There are fewer than ``needed`` bytes.
    """
    free, _ = torch.cuda.mem_get_info(device)
    if needed > free:
        raise UserError(
            f"the tables of the artifact take {needed / 1e9:.2f} GB on a GPU, which has {free / 1e9:.2f} GB left: "
            "score with device cpu."
        )
