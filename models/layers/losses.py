"""What training minimises for a task: rows one by one, or how well the rows of a list are ordered.

A new loss is one module with a config that is decorated with :func:`~data_pipelines.config.base.register`.

Letters: B rows of a batch, L lists of it (numbered below B), P pairs of rows of one list.
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, PlainValidator, SerializeAsAny, model_validator
from torch import Tensor

from data_pipelines.config.base import Family, register


class LossConfig(Family):
    """What training minimises: ``train.loss``. Tasks whose kind a loss does not support keep their default loss.

    A list is what `data.group` says, or a positive and the negatives that `data.sampling` draws for it.

    ``share`` is ignored by kinds that do not have it, so that ``kind`` alone can be changed.
    """

    kind: str
    tasks: ClassVar[tuple[str, ...]] = ("binary",)
    """The kinds of tasks that it replaces the default loss of."""
    needs_lists: ClassVar[bool] = True
    """Whether it compares the rows of a list, so that batches must keep lists whole."""
    probabilities: ClassVar[bool] = True
    """Whether the sigmoid of a logit that it learns is a probability; false if logits only give an order."""

    @classmethod
    def parse(cls, value: Any) -> Self:
        """As :meth:`Family.parse`; without a ``kind``, pointwise."""
        return super().parse({"kind": "pointwise", **value} if isinstance(value, Mapping) else value)

    @model_validator(mode="before")
    @classmethod
    def _without_keys_of_other_kinds(cls, content: Any) -> Any:
        if not isinstance(content, Mapping) or "share" in cls.model_fields:
            return content
        return {key: value for key, value in content.items() if key != "share"}

    @abstractmethod
    def loss(self, logits_B: Tensor, labels_B: Tensor, lists_B: Tensor, weights_B: Tensor) -> Tensor:
        """The loss of one task on a batch, a scalar. Every row has a label.

        Args:
            logits_B: float32.
            labels_B: float32; 0 or 1 for a binary task.
            lists_B: int64, ascending from 0: the list of each row. All 0 for a loss that needs no lists.
            weights_B: float32: how much each row counts.
        """


AnyLoss = Annotated[SerializeAsAny[LossConfig], PlainValidator(LossConfig.parse)]
"""The type of a config's field that holds any registered kind of loss."""


@register
class PointwiseConfig(LossConfig):
    """The cross entropy of each row, which learns probabilities."""

    kind: Literal["pointwise"] = "pointwise"
    tasks: ClassVar[tuple[str, ...]] = ()
    needs_lists: ClassVar[bool] = False

    def loss(self, logits_B: Tensor, labels_B: Tensor, lists_B: Tensor, weights_B: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(logits_B, labels_B, weights_B)


@register
class SoftmaxConfig(LossConfig):
    """The cross entropy of the positives among the rows of their list: it learns an order, not probabilities.

    ListNet's top-one loss (Cao et al., ICML 2007); the mean over the lists that have a positive. With drawn negatives
    it is the sampled softmax (with log-q correction: Bengio and Senecal, IEEE TNN 2008).
    """

    kind: Literal["softmax"] = "softmax"
    probabilities: ClassVar[bool] = False

    def loss(self, logits_B: Tensor, labels_B: Tensor, lists_B: Tensor, weights_B: Tensor) -> Tensor:
        losses_B = labels_B * weights_B * (_logsumexp(logits_B, lists_B)[lists_B] - logits_B)
        return losses_B.sum() / _with_positive(labels_B, lists_B)


@register
class LambdaRankConfig(LossConfig):
    """Pairs of a positive and another row of its list, weighted by how much swapping them would change NDCG.

    It learns an order, not probabilities (Burges, MSR-TR-2010-82); the mean over the lists that have a positive.
    """

    kind: Literal["lambdarank"] = "lambdarank"
    probabilities: ClassVar[bool] = False

    def loss(self, logits_B: Tensor, labels_B: Tensor, lists_B: Tensor, weights_B: Tensor) -> Tensor:
        discount_B = 1 / torch.log2(_ranks(logits_B.detach(), lists_B) + 2)
        best_B = 1 / torch.log2(_ranks(labels_B, lists_B) + 2)
        ideal_L = torch.zeros_like(labels_B).index_add(0, lists_B, labels_B * best_B)
        better_P, other_P, gain_P = _pairs(labels_B, lists_B)
        change_P = gain_P * (discount_B[better_P] - discount_B[other_P]).abs() / ideal_L[lists_B[better_P]]
        losses_P = weights_B[better_P] * change_P * F.softplus(logits_B[other_P] - logits_B[better_P])
        return losses_P.sum() / _with_positive(labels_B, lists_B)


@register
class PairwiseConfig(LossConfig):
    """The mean over pairs of a positive and another row of its list: it learns an order, not probabilities.

    Bayesian personalized ranking (BPR; Rendle et al., UAI 2009).
    """

    kind: Literal["pairwise"] = "pairwise"
    probabilities: ClassVar[bool] = False

    def loss(self, logits_B: Tensor, labels_B: Tensor, lists_B: Tensor, weights_B: Tensor) -> Tensor:
        better_P, other_P, gain_P = _pairs(labels_B, lists_B)
        losses_P = weights_B[better_P] * gain_P * F.softplus(logits_B[other_P] - logits_B[better_P])
        return losses_P.sum() / gain_P.sum().clamp(min=1)


@register
class CalibratedConfig(LossConfig):
    """Cross entropy of rows and of lists together, so that one logit can serve as probability and for ranking.

    The softmax over a list is of probabilities instead of exponentials (Bai et al., KDD 2023, "Regression Compatible
    Listwise Objectives"; the aim of JRC, Sheng et al., KDD 2023). The mean over rows.
    """

    kind: Literal["calibrated"] = "calibrated"
    share: float = Field(default=0.5, gt=0, lt=1, description="The share of the loss over lists in the total loss.")

    def loss(self, logits_B: Tensor, labels_B: Tensor, lists_B: Tensor, weights_B: Tensor) -> Tensor:
        log_odds_B = F.logsigmoid(logits_B)
        rows = F.binary_cross_entropy_with_logits(logits_B, labels_B, weights_B, reduction="sum")
        order = labels_B * weights_B * (_logsumexp(log_odds_B, lists_B)[lists_B] - log_odds_B)
        return ((1 - self.share) * rows + self.share * order.sum()) / max(len(labels_B), 1)


def loss_of_labelled(
    config: LossConfig, logits_B: Tensor, labels_B: Tensor, lists_B: Tensor | None, weights_B: Tensor | None = None
) -> Tensor:
    """The loss of one task on the rows of a batch that have a label, a scalar.

    Args:
        config: The kind of loss.
        logits_B: The ranker's.
        labels_B: NaN where a row has none; such a row is left out of its list.
        lists_B: (B,) int64, ascending from 0: the list of each row; ``None`` for a loss that needs no lists.
        weights_B: How much each row counts; all the same if ``None``.
    """
    present_B = ~labels_B.isnan()
    logits_B, labels_B = logits_B.float()[present_B], labels_B[present_B]
    if not len(labels_B):
        return logits_B.sum()
    if lists_B is None:
        lists_B = torch.zeros_like(labels_B, dtype=torch.int64)
    else:
        lists_B = torch.unique_consecutive(lists_B[present_B], return_inverse=True)[1]  # below the number of rows left
    weights_B = torch.ones_like(labels_B) if weights_B is None else weights_B[present_B]
    return config.loss(logits_B, labels_B, lists_B, weights_B)


def _logsumexp(values_B: Tensor, lists_B: Tensor) -> Tensor:
    """(B,) log of the sum of exponentials over each list; -inf for unused list numbers."""
    largest_L = values_B.new_full((len(values_B),), -torch.inf)
    largest_L = largest_L.scatter_reduce(0, lists_B, values_B.detach(), "amax")
    total_L = torch.zeros_like(values_B).index_add(0, lists_B, (values_B - largest_L[lists_B]).exp())
    return total_L.clamp(min=torch.finfo(total_L.dtype).tiny).log() + largest_L


def _with_positive(labels_B: Tensor, lists_B: Tensor) -> Tensor:
    """How many lists have a positive, at least 1."""
    return (torch.zeros_like(labels_B).index_add(0, lists_B, labels_B) > 0).sum().clamp(min=1)


def _pairs(labels_B: Tensor, lists_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each positive with each row of its list: positions of both, and the difference of their labels, at least 0."""
    positives = torch.nonzero(labels_B > 0).squeeze(1)
    first_L, size_L = _spans(lists_B)
    sizes = size_L[lists_B[positives]]
    better_P = positives.repeat_interleave(sizes)
    inside_P = torch.arange(len(better_P), device=sizes.device) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    other_P = first_L[lists_B[better_P]] + inside_P
    return better_P, other_P, (labels_B[better_P] - labels_B[other_P]).clamp(min=0)


def _spans(lists_B: Tensor) -> tuple[Tensor, Tensor]:
    """(B,) the first row of each list, and how many rows it has; 0 rows for unused list numbers."""
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
