"""What each expert has learned: which rows it serves more often than chance, and how they score without it.

Letters: N rows, L values of rows, K experts chosen for a row, E experts, T tasks, V values of a trait.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import NormalDist
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from data_pipelines.batch import Batch, SparseSpec
from models.moe.router import Router, routers
from models.ranker import Ranker

_CELLS = 1 << 24
_CHANCE = 0.025
"""How likely it is that any value is listed of experts that are chosen by chance."""


@dataclass(frozen=True)
class Trait:
    """A property of rows with numbered values: the ids of a feature, the hour of a row.

    Attributes:
        name: Of the property.
        size: V; the values are 0 to V - 1.
        read: The values in a batch: (L,) the position of the row that has each of them, and (L,) the values.
    """

    name: str
    size: int
    read: Callable[[Batch], tuple[Tensor, Tensor]]


class Affinity(NamedTuple):
    """One value of a trait and one expert.

    Attributes:
        rows: Routed rows with the value, over all experts.
        share: Of these, the share that the expert serves.
        lift: ``share`` over the expert's share of all rows.
        score: Signed root of the deviance of ``share`` from chance: in standard deviations, also for few rows.
    """

    router: str
    expert: int
    trait: str
    value: int
    rows: int
    share: float
    lift: float
    score: float


class Swap(NamedTuple):
    """The rows that one expert serves, scored as they are routed and by their next best choice.

    Attributes:
        rows_N: Their positions in the split.
        served_NT: Whether the expert serves the row for this task.
        logits_NT: Of the ranker.
        without_NT: Of the ranker whose router may not choose the expert.
    """

    router: str
    expert: int
    rows_N: Tensor
    served_NT: Tensor
    logits_NT: Tensor
    without_NT: Tensor


def feature_ids(spec: SparseSpec, batch: Batch) -> tuple[Tensor, Tensor]:
    """The row of every id in the bags of a feature, and the id."""
    bags = batch.bags(spec)
    return torch.arange(len(batch)).repeat_interleave(bags.lengths()), bags.values().long()


def feature_traits(ranker: Ranker) -> list[Trait]:
    """The ids of every feature that is not of a history."""
    specs = [spec for spec in ranker.schema.sparse if spec.sequence is None]
    return [Trait(spec.name, ranker.schema.table(spec.table).rows, partial(feature_ids, spec)) for spec in specs]


@torch.no_grad()
def expert_affinities(
    ranker: Ranker, batches: Iterable[Batch], traits: Sequence[Trait] | None = None, *, top: int = 5
) -> list[Affinity]:
    """For each expert of each router, the ``top`` values of each trait with the highest score over ``batches``.

    A value is listed only if chance alone would hardly list any (Bonferroni, over all values and experts). Traits with
    more than 16M cells (values times experts) are left out: their values are too rare.

    Args:
        traits: What is counted; the ids of all features if absent.
    """
    traits = feature_traits(ranker) if traits is None else traits
    counts: dict[tuple[str, str], Tensor] = {}
    ranker.eval()
    for batch in batches:
        with _chosen_experts(ranker) as chosen:
            ranker(batch)
        for trait in traits:
            row_L, value_L = trait.read(batch)
            for router, chosen_NK in chosen.items():
                experts = len(routers(ranker)[router].active_E)
                cells = trait.size * experts
                if cells > _CELLS:
                    continue
                # With several tasks, each has routed the batch once: the rows of one task follow those of another.
                tasks = len(chosen_NK) // len(batch)
                rows = (row_L + torch.arange(tasks).unsqueeze(1) * len(batch)).flatten()
                cell = value_L.repeat(tasks).unsqueeze(1) * experts + chosen_NK[rows]
                found = torch.bincount(cell.flatten(), minlength=cells).view(-1, experts)
                key = (router, trait.name)
                counts[key] = counts[key] + found if key in counts else found
    compared = sum(int((count_VE.sum(1) > 0).sum()) * count_VE.shape[1] for count_VE in counts.values())
    least = NormalDist().inv_cdf(1 - _CHANCE / max(compared, 1))
    return [
        affinity
        for (router, trait), count_VE in counts.items()
        for affinity in _strongest(router, trait, count_VE, top, least)
    ]


def _strongest(router: str, trait: str, count_VE: Tensor, top: int, least: float) -> Iterator[Affinity]:
    count_VE = count_VE.double()
    seen_V1 = count_VE.sum(1, keepdim=True)
    share_E = count_VE.sum(0) / count_VE.sum().clamp(min=1)
    expected_VE = seen_V1 * share_E
    deviance_VE = _surplus(count_VE, expected_VE) + _surplus(seen_V1 - count_VE, seen_V1 - expected_VE)
    score_VE = (2 * deviance_VE).clamp(min=0).sqrt() * torch.sign(count_VE - expected_VE)
    best = score_VE.topk(min(top, len(score_VE)), dim=0)
    for expert in range(count_VE.shape[1]):
        for score, value in zip(best.values[:, expert].tolist(), best.indices[:, expert].tolist(), strict=True):
            if score > least:
                share = float(count_VE[value, expert] / seen_V1[value, 0])
                lift = share / float(share_E[expert])
                yield Affinity(router, expert, trait, value, int(seen_V1[value, 0]), share, lift, score)


def _surplus(observed: Tensor, expected: Tensor) -> Tensor:
    """observed x log(observed / expected), 0 where nothing was observed."""
    return torch.where(observed > 0, observed * (observed / expected.clamp(min=1e-12)).clamp(min=1e-300).log(), 0.0)


@torch.no_grad()
def rows_per_expert(ranker: Ranker, batches: Iterable[Batch]) -> dict[str, Tensor]:
    """(E,) int64: how many of the routed rows of ``batches`` each expert serves, by router."""
    counts = {name: torch.zeros(len(router.active_E), dtype=torch.int64) for name, router in routers(ranker).items()}
    ranker.eval()
    for batch in batches:
        with _chosen_experts(ranker) as chosen:
            ranker(batch)
        for name, chosen_NK in chosen.items():
            counts[name] += torch.bincount(chosen_NK.flatten(), minlength=len(counts[name]))
    return counts


@torch.no_grad()
def expert_swaps(ranker: Ranker, batches: Iterable[Batch]) -> list[Swap]:
    """For each expert of each router, the rows that it serves, with their logits with and without it.

    Only an expert's own rows are computed again: together as often as a router chooses experts for a row. Experts that
    serve no row are left out, and so are those without which some rows would have no expert.
    """
    parts: dict[tuple[str, int], list[Swap]] = {}
    ranker.eval()
    for batch in batches:
        looked_up = ranker.look_up(batch)
        with _chosen_experts(ranker) as chosen:
            logits_BT = ranker.rank(*looked_up)
        for name, router in routers(ranker).items():
            for expert in torch.unique(chosen[name]).tolist():
                served_BT = (chosen[name] == expert).any(1).view(-1, len(batch)).T.expand(logits_BT.shape)
                rows = served_BT.any(1).nonzero().squeeze(1)
                if not router.can_leave_out(expert):
                    continue
                with router.without(expert):
                    without_NT = ranker.rank(*looked_up.take(rows))
                logits_NT, served_NT = logits_BT[rows], served_BT[rows]
                swap = Swap(name, expert, batch.rows[rows], served_NT, logits_NT, without_NT)
                parts.setdefault((name, expert), []).append(swap)
    return [
        Swap(router, expert, *(torch.cat(tensors) for tensors in zip(*(swap[2:] for swap in found), strict=True)))
        for (router, expert), found in sorted(parts.items())
    ]


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
