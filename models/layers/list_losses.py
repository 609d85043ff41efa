"""Losses over lists: how well the rows that were shown together are ordered.

Letters: B rows of a batch, L lists of it (numbered below B), P pairs of rows of one list.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from data_pipelines.config.base import Config


class LossConfig(Config):
    """What training minimises for binary tasks: ``train.loss``. All kinds but `pointwise` compare the rows of a list.

    A list is what `data.group` says, or a positive and the negatives that `data.sampling` draws for it: `softmax` is
    then the sampled softmax (with log-q correction: Bengio and Senecal, IEEE TNN 2008), and `pairwise` is BPR.

    ``pointwise``: cross entropy of each row, which learns probabilities. ``softmax``: cross entropy of the positives
    among the rows of their list (ListNet's top-one loss; Cao et al., ICML 2007). ``lambdarank``: each pair of a
    positive and another row of its list, weighted by how much NDCG its exchange would change (Burges, MSR-TR-2010-82).
    ``pairwise``: the mean over such pairs, unweighted (Bayesian personalized ranking; Rendle et al., UAI 2009). These
    three learn an order and no probabilities. ``calibrated``: cross entropy of rows and of lists together, with
    probabilities in place of exponentials in the softmax, so that one logit can serve both (Bai et al., KDD 2023,
    "Regression Compatible Listwise Objectives"; the aim of JRC, Sheng et al., KDD 2023).
    """

    kind: Literal["pointwise", "softmax", "pairwise", "lambdarank", "calibrated"] = Field(
        default="pointwise", description="What is compared: rows with their labels, or rows of a list with each other."
    )
    share: float = Field(
        default=0.5, gt=0, lt=1, description="Of `calibrated`: the share of the loss that is about the order of lists."
    )

    @property
    def needs_lists(self) -> bool:
        """Whether batches must keep lists whole."""
        return self.kind != "pointwise"


def list_loss(
    config: LossConfig, logits_B: Tensor, labels_B: Tensor, lists_B: Tensor, weights_B: Tensor | None = None
) -> Tensor:
    """The loss of one task on a batch of whole lists, a scalar: the mean over lists with a positive.

    Of ``pairwise`` it is the mean over pairs, and of ``calibrated`` that over rows, as that of
    :func:`~models.layers.heads.task_losses` is.

    Args:
        config: The kind of loss.
        logits_B: The ranker's.
        labels_B: 0 or 1, NaN where a row has none; such a row is left out of its list.
        lists_B: (B,) int64, ascending from 0: the list of each row.
        weights_B: How much each row counts where it is the positive one (and in the pointwise part).
    """
    present_B = ~labels_B.isnan()
    logits_B, labels_B, lists_B = logits_B.float()[present_B], labels_B[present_B], lists_B[present_B]
    lists_B = torch.unique_consecutive(lists_B, return_inverse=True)[1]  # below the number of rows that are left
    weights_B = torch.ones_like(labels_B) if weights_B is None else weights_B[present_B]
    if config.kind == "lambdarank":
        return _lambda_loss(logits_B, labels_B, lists_B, weights_B)
    if config.kind == "pairwise":
        return _pairwise_loss(logits_B, labels_B, lists_B, weights_B)
    if config.kind == "softmax":
        losses_B = labels_B * weights_B * (_logsumexp(logits_B, lists_B)[lists_B] - logits_B)
        return losses_B.sum() / _with_positive(labels_B, lists_B)
    log_odds_B = F.logsigmoid(logits_B)
    rows = F.binary_cross_entropy_with_logits(logits_B, labels_B, weights_B, reduction="sum")
    order = labels_B * weights_B * (_logsumexp(log_odds_B, lists_B)[lists_B] - log_odds_B)
    return ((1 - config.share) * rows + config.share * order.sum()) / max(len(labels_B), 1)


def _logsumexp(values_B: Tensor, lists_B: Tensor) -> Tensor:
    """(B,) log of the sum of exponentials over each list; -inf for numbers that are no list's."""
    largest_L = values_B.new_full((len(values_B),), -torch.inf)
    largest_L = largest_L.scatter_reduce(0, lists_B, values_B.detach(), "amax")
    total_L = torch.zeros_like(values_B).index_add(0, lists_B, (values_B - largest_L[lists_B]).exp())
    return total_L.clamp(min=torch.finfo(total_L.dtype).tiny).log() + largest_L


def _with_positive(labels_B: Tensor, lists_B: Tensor) -> Tensor:
    """How many lists have a positive, at least 1."""
    return (torch.zeros_like(labels_B).index_add(0, lists_B, labels_B) > 0).sum().clamp(min=1)


def _lambda_loss(logits_B: Tensor, labels_B: Tensor, lists_B: Tensor, weights_B: Tensor) -> Tensor:
    if not len(labels_B):
        return logits_B.sum()
    discount_B = 1 / torch.log2(_ranks(logits_B.detach(), lists_B) + 2)
    best_B = 1 / torch.log2(_ranks(labels_B, lists_B) + 2)
    ideal_L = torch.zeros_like(labels_B).index_add(0, lists_B, labels_B * best_B)
    better_P, other_P, gain_P = _pairs(labels_B, lists_B)
    change_P = gain_P * (discount_B[better_P] - discount_B[other_P]).abs() / ideal_L[lists_B[better_P]]
    losses_P = weights_B[better_P] * change_P * F.softplus(logits_B[other_P] - logits_B[better_P])
    return losses_P.sum() / _with_positive(labels_B, lists_B)


def _pairwise_loss(logits_B: Tensor, labels_B: Tensor, lists_B: Tensor, weights_B: Tensor) -> Tensor:
    better_P, other_P, gain_P = _pairs(labels_B, lists_B)
    losses_P = weights_B[better_P] * gain_P * F.softplus(logits_B[other_P] - logits_B[better_P])
    return losses_P.sum() / gain_P.sum().clamp(min=1)


def _pairs(labels_B: Tensor, lists_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each positive with each row of its list: the places of both, and the difference of their labels, at least 0."""
    positives = torch.nonzero(labels_B > 0).squeeze(1)
    first_L, size_L = _spans(lists_B)
    sizes = size_L[lists_B[positives]]
    better_P = positives.repeat_interleave(sizes)
    inside_P = torch.arange(len(better_P), device=sizes.device) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    other_P = first_L[lists_B[better_P]] + inside_P
    return better_P, other_P, (labels_B[better_P] - labels_B[other_P]).clamp(min=0)


def _spans(lists_B: Tensor) -> tuple[Tensor, Tensor]:
    """(B,) the first row of each list, and how many rows it has; 0 rows for numbers that are no list's."""
    size_L = torch.bincount(lists_B, minlength=len(lists_B))
    return size_L.cumsum(0) - size_L, size_L


def _ranks(scores_B: Tensor, lists_B: Tensor) -> Tensor:
    """(B,) the rank of each row in its list, from 0, in descending order of score; ties by row."""
    order_B = torch.argsort(-scores_B, stable=True)
    order_B = order_B[torch.argsort(lists_B[order_B], stable=True)]
    first_L, _ = _spans(lists_B)
    ranks_B = torch.empty_like(lists_B)
    ranks_B[order_B] = torch.arange(len(order_B), device=order_B.device) - first_L[lists_B[order_B]]
    return ranks_B
