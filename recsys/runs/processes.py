"""The process group of a training, of one process or many."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from types import FrameType

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import HashStore

from data_pipelines.errors import UserError
from models.devices import means_gpu

_TIMEOUT = timedelta(minutes=30)


@dataclass
class Processes:
    """This process among those that train together.

    Attributes:
        device: Where this rank's model is.
        group: Gloo group for numbers on the CPU, whatever device the model is on.
        stop_requested: Whether a signal asked this process to stop; see :meth:`agree`.
    """

    rank: int
    world_size: int
    device: torch.device
    group: dist.ProcessGroup | None
    stop_requested: bool = field(default=False)

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def mean(self, values: Tensor) -> Tensor:
        """Mean of ``values`` over the ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(values, group=self.group)
            values /= self.world_size
        return values

    def gather(self, values_Nk: Tensor) -> Tensor:
        """Rows of all ranks in rank order, on every rank. Ranks may hold different numbers of rows."""
        if self.world_size == 1:
            return values_Nk
        counts = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world_size)]
        dist.all_gather(counts, torch.tensor([len(values_Nk)]), group=self.group)
        longest = int(max(counts))
        padded = values_Nk.new_zeros((longest, *values_Nk.shape[1:]))
        padded[: len(values_Nk)] = values_Nk
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded, group=self.group)
        return torch.cat([part[: int(count)] for part, count in zip(parts, counts, strict=True)])

    def broadcast(self, text: str) -> str:
        """``text`` of rank 0, on every rank."""
        if self.world_size == 1:
            return text
        holder = [text]
        dist.broadcast_object_list(holder, src=0, group=self.group)
        return holder[0]

    def gather_text(self, text: str) -> list[str]:
        """``text`` of every rank in rank order, on every rank."""
        if self.world_size == 1:
            return [text]
        texts = [""] * self.world_size
        dist.all_gather_object(texts, text, group=self.group)
        return texts

    def apart(self) -> "Processes":
        """The same processes with a separate group, for use in another thread; every rank calls this."""
        return replace(self, group=dist.new_group(backend="gloo", timeout=_TIMEOUT))

    def barrier(self) -> None:
        if self.world_size > 1:
            dist.barrier(group=self.group)


@contextmanager
def process_group(device: str = "auto", *, tf32: bool = True) -> Iterator[Processes]:
    """Join the process group that ``torchrun`` describes, or form one of a single process.

    Collectives of the default group run on the device of their tensors: NCCL on a GPU, Gloo on the CPU.

    SIGTERM and SIGINT set :attr:`Processes.stop_requested` instead of killing, as long as the block runs.

    Args:
        device: ``auto``, ``cpu`` or ``cuda``: ``train.device``.
        tf32: Whether fp32 products on a GPU may be computed in TF32 while the block runs.

    Raises:
        UserError: There is no GPU for this rank; or ``torchrun`` may restart ranks, which would then share the store of
            the dead ranks.
    """
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    _check_restarts()
    place = device_of(device, int(os.environ.get("LOCAL_RANK", "0")))
    backend = "gloo"
    if place.type == "cuda":
        torch.cuda.set_device(place)
        backend = "cpu:gloo,cuda:nccl"
    if world_size > 1:
        dist.init_process_group(backend, timeout=_TIMEOUT)
    else:
        dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
    group = dist.group.WORLD if backend == "gloo" else dist.new_group(backend="gloo", timeout=_TIMEOUT)
    processes = Processes(rank, world_size, place, group)

    def request_stop(_signal: int, _frame: FrameType | None) -> None:
        processes.stop_requested = True

    products = torch.get_float32_matmul_precision()
    if place.type == "cuda":
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
    previous = {number: signal.signal(number, request_stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield processes
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        torch.set_float32_matmul_precision(products)
        dist.destroy_process_group()


def device_of(name: str, local_rank: int = 0) -> torch.device:
    """The device that ``train.device`` means for a rank.

    Args:
        name: ``auto``, ``cpu`` or ``cuda``.
        local_rank: Number of the rank among those of its machine; each has a GPU of its own.

    Raises:
        UserError: Torch sees no GPU, or fewer than there are ranks on this machine.
    """
    if not means_gpu(name, option="train.device", on_cpu="train with train.device=cpu"):
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if local_rank >= count:
        raise UserError(
            f"rank {local_rank} of this machine has no GPU of its own (Torch sees {count}): start at most {count} "
            "ranks per machine, or train with train.device=cpu."
        )
    return torch.device("cuda", local_rank)


def _check_restarts() -> None:
    """Restarted ranks that share the agents' store read addresses of dead ones (pytorch/pytorch issue 135712)."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and os.environ.get("TORCHELASTIC_MAX_RESTARTS") != "0":
        raise UserError(
            "torchrun --max-restarts needs --rdzv-backend c10d (or --standalone), and on every node the environment "
            "variable TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1: without them, restarted ranks wait for ranks that "
            "no longer exist."
        )
