"""What each expert has learned: the feature values whose rows it serves more often than chance.

Letters: N rows, K experts chosen for a row, E experts, R rows of a table.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from data_pipelines.batch import Batch
from models.moe.router import Router, routers
from models.ranker import Ranker

_CELLS = 1 << 24


class Affinity(NamedTuple):
    """One value of a feature and one expert.

    Attributes:
        rows: Routed rows with the value, over all experts.
        share: Of these, the share that the expert serves.
        lift: ``share`` over the expert's share of all rows.
        score: Standard deviations of ``share`` above chance.
    """

    router: str
    expert: int
    feature: str
    id: int
    rows: int
    share: float
    lift: float
    score: float


@torch.no_grad()
def expert_affinities(ranker: Ranker, batches: Iterable[Batch], *, top: int = 5) -> list[Affinity]:
    """For each expert of each router, the ``top`` values with the highest score over ``batches``.

    Features with more than 16M cells (rows of the table times experts) are left out: their values are too rare.
    """
    counts: dict[tuple[str, str], Tensor] = {}
    ranker.eval()
    for batch in batches:
        with _chosen_experts(ranker) as chosen:
            ranker(batch)
        for router, chosen_NK in chosen.items():
            experts = routers(ranker)[router].weight.shape[0]
            for feature, row_L, id_L in _values(ranker, batch):
                cells = ranker.schema.table(feature.table).rows * experts
                if cells > _CELLS:
                    continue
                # With several tasks, each has routed the batch once: the rows of one task follow those of another.
                tasks = len(chosen_NK) // len(batch)
                rows = (row_L + torch.arange(tasks, device=row_L.device).unsqueeze(1) * len(batch)).flatten()
                cell = id_L.repeat(tasks).unsqueeze(1) * experts + chosen_NK[rows]
                found = torch.bincount(cell.flatten(), minlength=cells).view(-1, experts)
                key = (router, feature.name)
                counts[key] = counts[key] + found if key in counts else found
    return [
        affinity for (router, feature), count in counts.items() for affinity in _strongest(router, feature, count, top)
    ]


def _values(ranker: Ranker, batch: Batch) -> Iterator[tuple[Any, Tensor, Tensor]]:
    """For each feature that is not of a history: the row of every id of its bags, and the id."""
    for spec in ranker.schema.sparse:
        if spec.sequence is None:
            bags = (batch.weighted if spec.weighted else batch.sparse)[spec.name]  # type: ignore[index]
            row_L = torch.arange(len(batch)).repeat_interleave(bags.lengths())
            yield spec, row_L, bags.values().long()


def _strongest(router: str, feature: str, count_RE: Tensor, top: int) -> Iterator[Affinity]:
    seen_R1 = count_RE.sum(1, keepdim=True).double()
    share_E = count_RE.sum(0) / count_RE.sum().clamp(min=1)
    deviation_RE = (seen_R1 * share_E * (1 - share_E)).sqrt().clamp(min=1e-12)
    score_RE = torch.where(seen_R1 > 0, (count_RE - seen_R1 * share_E) / deviation_RE, -torch.inf)
    best = score_RE.topk(min(top, len(score_RE)), dim=0)
    for expert in range(count_RE.shape[1]):
        for score, row in zip(best.values[:, expert].tolist(), best.indices[:, expert].tolist(), strict=True):
            if score > 2:
                share = float(count_RE[row, expert] / seen_R1[row, 0])
                lift = share / float(share_E[expert])
                yield Affinity(router, expert, feature, row, int(seen_R1[row, 0]), share, lift, score)


@contextmanager
def _chosen_experts(module: nn.Module) -> Iterator[dict[str, Tensor]]:
    """The experts (N, K) that every router chooses while the block runs, by the router's path."""
    chosen: dict[str, Tensor] = {}
    hooks = []
    for name, router in routers(module).items():

        def keep(_: Router, __: Any, output: tuple[Tensor, Tensor, Tensor], name: str = name) -> None:
            chosen[name] = output[1]

        hooks.append(router.register_forward_hook(keep))
    try:
        yield chosen
    finally:
        for hook in hooks:
            hook.remove()
