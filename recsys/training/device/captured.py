"""The dense part of a step as two CUDA graphs: one launch forward and one backward, instead of some hundred.

A step of a small model is bound by starting kernels, not by computing them. ``torch.cuda.make_graphed_callables``
records the kernels that run anyway and replays them: the arithmetic stays as it is, and a resumed training replays the
same kernels. ``torch.compile(mode="reduce-overhead")`` would generate other kernels, take a minute to compile, and
trace through code that it does not know (functions with gradients of their own). Lookups stay outside: their sizes
change from batch to batch.

Letters: B rows of a batch, W columns of all lookups, D dense columns, T tasks.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from data_pipelines.batch import Batch
from data_pipelines.errors import Notice
from models.moe.experts import mixtures
from models.moe.fused import can_fuse
from models.moe.router import routers
from models.ranker import LookedUp, Ranker
from models.sparsity.lever import Lever

_RELATIVE, _ABSOLUTE = 0.01, 1e-4
"""How far loss and gradients of the first replay may be from those of the same kernels without a graph."""


class Tail(Protocol):
    """The loss of logits and labels, with what the ranker adds to it."""

    def __call__(
        self, ranker: Ranker, logits_BT: Tensor, labels_BT: Tensor, weights_BT: Tensor | None, log_q_BT: Tensor | None
    ) -> Tensor: ...


def may_capture(ranker: Ranker, levers: Sequence[Lever], *, half: bool) -> bool:
    """Whether the dense part is the same sequence of kernels at every step, without a wait of the CPU for the GPU.

    Levers may change weights, masks and hooks at any step; with several ranks, gradients are averaged while the
    backward pass runs; and Torch's float32 grouped products of experts read the sizes of groups on the CPU.

    Args:
        half: Whether dense products are in bfloat16.
    """
    experts = mixtures(ranker.tower).values()
    on_device = half or not experts or all(can_fuse(mixture.experts.w1_EDH) for mixture in experts)
    return not levers and on_device and (not dist.is_initialized() or dist.get_world_size() == 1)


class _Dense(nn.Module):
    """Everything from the results of the lookups, side by side, to the loss.

    Args:
        pooled, wide: Names and widths of the lookups, in the order of their columns.
        weighted, corrected: Whether batches have weights, and a log-q correction.
    """

    def __init__(
        self,
        ranker: Ranker,
        tail: Tail,
        pooled: dict[str, int],
        wide: dict[str, int],
        *,
        weighted: bool,
        corrected: bool,
        half: bool,
    ) -> None:
        super().__init__()
        for name, child in ranker.named_children():
            if child is not ranker.tables and child is not ranker.histories and child is not ranker.managed_ids:
                self.add_module(name, child)
        self._whole = (ranker,)  # a tuple, so that tables are not parameters of this module
        self._tail, self._pooled, self._wide = tail, pooled, wide
        self._weighted, self._corrected, self._half = weighted, corrected, half

    def forward(self, embedded_BW: Tensor, dense_BD: Tensor, labels_BT: Tensor, *others: Tensor) -> Tensor:
        """The scalar loss; ``others`` are the weights and the log-q correction, if there are any."""
        (ranker,) = self._whole
        columns = torch.split(embedded_BW, [*self._pooled.values(), *self._wide.values()], 1)
        pooled = dict(zip(self._pooled, columns, strict=False))
        wide = dict(zip(self._wide, columns[len(pooled) :], strict=True))
        device = embedded_BW.device.type
        with torch.autocast(device, torch.bfloat16, enabled=self._half, cache_enabled=False):
            logits_BT = ranker.rank(pooled, dense_BD, wide)
        rest = list(others)
        weights_BT = rest.pop(0) if self._weighted else None
        log_q_BT = rest.pop(0) if self._corrected else None
        loss = self._tail(ranker, logits_BT, labels_BT, weights_BT, log_q_BT)
        for router in routers(self).values():
            router.forget_batch()  # its autograd graph would tie the parameters to the stream of this pass
        return loss


@dataclass(frozen=True)
class _Captured:
    replay: Callable[..., Tensor]
    shapes: list[torch.Size]


class CapturedLoss:
    """The loss of full batches by CUDA graphs; if capturing fails, the training continues without, with one notice.

    Args:
        tail: The loss of logits; without a read of the device.
        rows: B of a full batch; batches of other sizes are not captured.
        half: Whether dense products are in bfloat16.
        before: Called before capturing, during which no other thread may use the GPU.
        make: Records a module's forward and backward pass; :func:`torch.cuda.make_graphed_callables`.
    """

    def __init__(
        self,
        ranker: Ranker,
        tail: Tail,
        *,
        rows: int,
        half: bool,
        before: Callable[[], None] = lambda: None,
        make: Callable[..., Any] = torch.cuda.make_graphed_callables,
    ) -> None:
        self._ranker, self._tail, self._rows, self._half = ranker, tail, rows, half
        self._before, self._make = before, make
        self._captured: _Captured | None = None
        self._failed = False

    def takes(self, batch: Batch) -> bool:
        """Whether :meth:`loss` may compute this batch."""
        return not self._failed and self._ranker.training and len(batch) == self._rows and batch.labels is not None

    def loss(self, looked_up: LookedUp, batch: Batch) -> Tensor | None:
        """The loss of a batch that :meth:`takes` accepts; ``None`` if it must be computed without graphs.

        The first call captures, and compares loss and gradients of the graph with those of the same kernels without
        one.
        """
        parts = [*looked_up.pooled.values(), *looked_up.wide.values()]
        others = [part for part in (batch.weights, batch.log_q) if part is not None]
        if not parts or batch.labels is None or any(len(part) != self._rows for part in parts):
            return None
        arguments = [torch.cat(parts, 1), looked_up.dense_BD, batch.labels, *others]
        shapes = [argument.shape for argument in arguments]
        if self._captured is None:
            dense = _Dense(
                self._ranker,
                self._tail,
                {name: part.shape[1] for name, part in looked_up.pooled.items()},
                {name: part.shape[1] for name, part in looked_up.wide.items()},
                weighted=batch.weights is not None,
                corrected=batch.log_q is not None,
                half=self._half,
            )
            replay = self._capture(dense, arguments)
            if replay is None:
                return None
            self._captured = _Captured(replay, shapes)
        if shapes != self._captured.shapes:
            return None
        return self._captured.replay(*arguments).clone()  # the next replay writes to the same memory

    def _capture(self, dense: _Dense, arguments: list[Tensor]) -> Callable[..., Tensor] | None:
        """A replay of ``dense``; buffers and random states are afterwards as they were."""
        self._before()
        samples = tuple(part.detach().clone().requires_grad_(part.requires_grad) for part in arguments)
        buffers = [buffer.clone() for buffer in dense.buffers()]
        devices = [samples[0].device] if samples[0].is_cuda else []

        def undisturbed(compute: Callable[[], Any]) -> Any:
            try:
                with torch.random.fork_rng(devices):
                    return compute()
            finally:
                with torch.no_grad():
                    for buffer, before in zip(dense.buffers(), buffers, strict=True):
                        buffer.copy_(before)

        inputs = [part for part in (*samples, *dense.parameters()) if part.requires_grad]
        expected = undisturbed(lambda: _loss_and_gradients(dense(*samples), inputs))
        if not all(map(math.isfinite, expected)):
            return None  # a training that diverges says so itself
        try:
            replay: Callable[..., Tensor] = undisturbed(lambda: self._recorded(dense, samples))
            found = undisturbed(lambda: _loss_and_gradients(replay(*samples), inputs))
        except (RuntimeError, AssertionError, TypeError, ValueError) as error:
            self._give_up((str(error) or type(error).__name__).splitlines()[0])
            return None
        for what, mine, wanted in zip(("loss", "norm of gradients"), found, expected, strict=True):
            if not math.isclose(mine, wanted, rel_tol=_RELATIVE, abs_tol=_ABSOLUTE):
                self._give_up(f"the {what} of its first replay is {mine:.6g}, not {wanted:.6g}")
                return None
        return replay

    def _recorded(self, dense: _Dense, samples: tuple[Tensor, ...]) -> Any:
        """A replay of ``dense``; after an error, the stream and the allocator are as they were.

        ``torch.cuda.graph`` leaves its own stream as the current one when a capture fails, and its pool open, so that
        memory used on several streams, such as that of every batch, would never be freed.
        """
        device = samples[0].device
        if device.type != "cuda":
            return self._make(dense, samples, allow_unused_input=True)
        # The graph's parameters belong to the stream that recorded them; the warning about it asks for nothing.
        torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)
        stream, pool = torch.cuda.current_stream(device), torch.cuda.graph_pool_handle()
        try:
            return self._make(dense, samples, allow_unused_input=True, pool=pool)
        except BaseException:
            torch.cuda.set_stream(stream)
            with suppress(RuntimeError):  # the pool was closed
                torch._C._cuda_endAllocateToPool(device.index, pool)
            raise

    def _give_up(self, why: str) -> None:
        self._failed = True
        warnings.warn(
            f"the dense part is not captured as CUDA graphs ({why}): steps of small batches take longer. "
            "train.cuda_graphs=false skips the attempt.",
            Notice,
            stacklevel=2,
        )


def _loss_and_gradients(loss: Tensor, inputs: Sequence[Tensor]) -> tuple[float, float]:
    """A loss, and the norm of its gradients."""
    found = torch.autograd.grad(loss, inputs, allow_unused=True)
    return float(loss.detach()), float(nn.utils.get_total_norm([part for part in found if part is not None]))
