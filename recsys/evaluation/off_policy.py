"""Off-policy evaluation: what a policy made of a model's scores would have earned on logged decisions.

Letters: N decisions (rows), A actions, L lists, P pairs of a place of a list and a row of the same list.
"""

import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from pydantic import BaseModel, ConfigDict
from scipy.special import softmax

from data_pipelines.dataset.dataset import Dataset
from data_pipelines.errors import Notice, UserError
from recsys.config.experiment import ExperimentConfig
from recsys.config.off_policy import OffPolicyConfig
from recsys.evaluation.evaluate import facts_of
from recsys.evaluation.logged_rows import LoggedRows, action_table, propensities_of
from recsys.metrics.arrays import Floats, Indices
from recsys.metrics.bootstrap import Resampling
from recsys.metrics.metric import predictions_of
from recsys.metrics.off_policy import Decisions, Estimate, effective_rows, estimate

_ORDERS = 256
"""Orders that `softmax` draws for each list: the chances of places have no closed form."""
_PAIRS = 1 << 16
"""Counterfactual rows that are scored together."""
_MOST_PAIRS = 500_000_000
_FEW_ROWS = 100
_LARGE_SHARE = 0.1
_MEAN_WEIGHT = (0.8, 1.25)


class PolicyValue(BaseModel):
    """A mean reward per row, with its 95% interval, and its change from that of the logged policy."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    value: float
    low: float
    high: float
    change: float
    change_low: float
    change_high: float

    @classmethod
    def of(cls, found: Estimate) -> "PolicyValue":
        """An estimate with both intervals as four separate numbers."""
        (low, high), (change_low, change_high) = found.interval, found.change_interval
        return cls(
            value=found.value,
            low=low,
            high=high,
            change=found.change,
            change_low=change_low,
            change_high=change_high,
        )


class OffPolicyResult(BaseModel):
    """What `recsys evaluate --off-policy` measured.

    Attributes:
        rows: Decisions with a known reward.
        rewarded: Those whose reward is not 0 and whose action the new policy may choose.
        logged: The mean reward of the logged policy.
        estimates: Estimates of the new policy's mean reward, by estimator (see :mod:`recsys.metrics.off_policy`).
        effective_rows: The effective sample size of the importance weights.
        support: The share of rows whose action the new policy may choose.
        mean_weight: About 1 if the propensities fit the log.
        largest_weight: Of a row.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    policy: str
    rows: int
    rewarded: int
    logged: PolicyValue
    estimates: dict[str, PolicyValue]
    effective_rows: float
    support: float
    mean_weight: float
    largest_weight: float

    def lines(self) -> dict[str, Any]:
        """One line per estimate, to print."""
        told = {"policy": self.policy, "rows": self.rows, "rewarded": self.rewarded}
        told |= {name: _told(value) for name, value in {"logged": self.logged, **self.estimates}.items()}
        names = ("effective_rows", "support", "mean_weight", "largest_weight")
        return told | {name: getattr(self, name) for name in names}


def evaluate_off_policy(run: Path, dataset: Dataset, config: ExperimentConfig, split: str = "test") -> OffPolicyResult:
    """Estimate what the policy of ``config.off_policy`` would have earned on the rows of a split.

    Raises:
        UserError: There is no block ``off_policy``, a column is missing or holds no propensities, or the log cannot be
            read again.
    """
    asked = config.off_policy
    if asked is None:
        raise UserError(
            f"{run} has no block `off_policy`: add, e.g., off_policy.propensity=COLUMN off_policy.action=COLUMN."
        )
    task = asked.task or dataset.schema.tasks[0]
    if task not in dataset.schema.tasks:
        raise UserError(f"off_policy.task is {task!r}: the tasks are {', '.join(dataset.schema.tasks)}.")
    rows = LoggedRows.read(run, dataset, split, task)
    propensities_N = propensities_of(rows.frame, asked.propensity)
    decide = _over_actions if asked.action is not None else _over_lists
    chosen_N, predicted_N, expected_N = decide(rows, asked)
    decisions = Decisions(rows.labels_N, propensities_N, chosen_N, predicted_N, expected_N)
    loss = config.train.loss
    if rows.kind in loss.tasks and not loss.probabilities:
        _notice(f"train.loss.kind {loss.kind_name()} learns no probabilities: dm and dr are left out.")
        decisions = replace(decisions, predicted_N=None, expected_N=None)
    return _summary(decisions, facts_of(dataset, split, task), asked)


def _summary(decisions: Decisions, facts: Any, asked: OffPolicyConfig) -> OffPolicyResult:
    there_N = ~np.isnan(decisions.rewards_N)
    if not there_N.any():
        raise UserError("no row of the split has a reward: name another task with off_policy.task.")
    facts = facts.take(there_N)
    decisions = decisions.take(there_N)
    resampling = Resampling(facts.users_N, int(there_N.sum()), lists_N=facts.lists_N, draws=asked.draws)
    base, found = estimate(decisions, resampling, clip=asked.clip)
    weights_N = decisions.weights(asked.clip)
    result = OffPolicyResult(
        policy=asked.policy if asked.policy != "softmax" else f"softmax, temperature {asked.temperature:g}",
        rows=int(there_N.sum()),
        rewarded=int(((decisions.rewards_N != 0) & (decisions.chosen_N > 0)).sum()),
        logged=PolicyValue.of(base),
        estimates={name: PolicyValue.of(value) for name, value in found.items()},
        effective_rows=effective_rows(weights_N),
        support=float((decisions.chosen_N > 0).mean()),
        mean_weight=float(weights_N.mean()),
        largest_weight=float(weights_N.max()),
    )
    warn_of_doubts(result)
    return result


def warn_of_doubts(result: OffPolicyResult) -> None:
    """Say what makes the estimates doubtful."""
    if result.support == 0:
        _notice("the policy would have chosen none of the logged actions: ips, snips and dr know nothing about it.")
        return
    if result.effective_rows < _FEW_ROWS:
        _notice(
            f"the weights of {result.rows:,} rows tell as much as {result.effective_rows:,.0f} rows of equal weight: "
            "do not trust ips, snips and dr, nor their intervals; a policy closer to the logged one (softmax, a higher "
            "temperature) or off_policy.clip gives smaller weights."
        )
    elif result.largest_weight > _LARGE_SHARE * result.mean_weight * result.rows:
        _notice(
            f"one row has {result.largest_weight / (result.mean_weight * result.rows):.0%} of all weight: "
            "off_policy.clip bounds it."
        )
    elif result.rewarded < _FEW_ROWS:
        _notice(
            f"only {result.rewarded:,} rows have a reward other than 0 and an action that the policy may choose: "
            "intervals are too narrow, and most often too low; use more rows."
        )
    low, high = _MEAN_WEIGHT
    if not low <= result.mean_weight <= high:
        _notice(
            f"the mean weight is {result.mean_weight:.3g} and should be about 1: the propensities are not those of the "
            "logged actions, the policy would choose actions that were never logged, or clip is large."
        )


def _notice(text: str) -> None:
    warnings.warn(text, Notice, stacklevel=3)


def _told(value: PolicyValue) -> str:
    text = f"{value.value:.6g} [{value.low:.6g}, {value.high:.6g}]"
    if value.change_low == value.change_high == 0:
        return text
    return f"{text}; change {value.change:+.6g} [{value.change_low:+.6g}, {value.change_high:+.6g}]"


def _over_actions(rows: LoggedRows, asked: OffPolicyConfig) -> tuple[Floats, Floats, Floats]:
    """Of each row: the policy's chance of its action, its predicted reward, and that of the policy's actions."""
    assert asked.action is not None
    actions = action_table(rows, asked.action)
    size = len(actions)
    if size * len(rows) > _MOST_PAIRS:
        raise UserError(
            f"off_policy.action: {len(rows):,} rows x {size:,} actions are too many to score: evaluate a smaller split."
        )
    taken_N = rows.frame.select(asked.action[0]).join(
        actions.select(asked.action[0]).with_row_index(":action"), on=asked.action[0], how="left", maintain_order="left"
    )[":action"]
    parts = []
    for start, chunk in _chunks(rows.frame, max(1, _PAIRS // size)):
        crossed = chunk[np.arange(len(chunk)).repeat(size)]
        crossed = crossed.with_columns(actions[np.tile(np.arange(size), len(chunk))])
        logits, scores = (values.reshape(-1, size) for values in rows.both(crossed))
        rewards_NA = predictions_of(rows.kind, logits)
        chances_NA = policy_chances(scores, asked)
        own = np.arange(len(chunk)), taken_N[start : start + len(chunk)].to_numpy()
        parts.append((chances_NA[own], rewards_NA[own], (chances_NA * rewards_NA).sum(axis=1)))
    chosen_N, predicted_N, expected_N = (np.concatenate(part) for part in zip(*parts, strict=True))
    return chosen_N, predicted_N, expected_N


def policy_chances(scores_NA: Floats, asked: OffPolicyConfig) -> Floats:
    """(N, A) the chance with which the policy chooses each action; `greedy` divides it among equal best scores."""
    if asked.policy == "uniform":
        return np.full(scores_NA.shape, 1 / scores_NA.shape[1])
    if asked.policy == "softmax":
        return np.asarray(softmax(scores_NA.astype(np.float64) / asked.temperature, axis=1))
    best_NA = scores_NA == scores_NA.max(axis=1, keepdims=True)
    return np.asarray(best_NA / best_NA.sum(axis=1, keepdims=True))


def _over_lists(rows: LoggedRows, asked: OffPolicyConfig) -> tuple[Floats, Floats, Floats]:
    """Of each place of a list: the policy's chance of the row there, its reward, and that of the policy's rows.

    Clicks at a position are taken to depend on the row there, and on nothing else of the order (item-position model;
    Li et al., KDD 2018, "Offline evaluation of ranking policies with click models").
    """
    assert asked.position is not None
    first_N, size_N = rows.spans
    place_N = rows.places(asked.position)
    place, other = _pairs(first_N, size_N)
    scores_N = None
    if asked.position in rows.columns:
        at = rows.frame[asked.position]
        logits = []
        for start in range(0, len(place), _PAIRS):
            part = slice(start, start + _PAIRS)
            logits.append(rows.logits(rows.frame[other[part]].with_columns(at.gather(place[part]))))
        logits_P = np.concatenate(logits)
    else:
        logits_N, scores_N = rows.both(rows.frame)
        logits_P = logits_N[other]
    rewards_P = predictions_of(rows.kind, logits_P)
    start_N = np.cumsum(size_N) - size_N  # where the pairs of a place begin
    own_N = rewards_P[start_N + np.arange(len(rows)) - first_N]
    if asked.policy == "uniform":
        return 1 / size_N, own_N, np.add.reduceat(rewards_P, start_N) / size_N
    chosen_N, expected_N, orders = np.zeros(len(rows)), np.zeros(len(rows)), 0
    if scores_N is None:
        scores_N = rows.scores(rows.frame)
    for order_N in _orders(scores_N, first_N, asked):
        shown_N = order_N[first_N + place_N]
        chosen_N += shown_N == np.arange(len(rows))
        expected_N += rewards_P[start_N + shown_N - first_N]
        orders += 1
    return chosen_N / orders, own_N, expected_N / orders


def _orders(scores_N: Floats, first_N: Indices, asked: OffPolicyConfig) -> Iterator[Indices]:
    """(N,) rows of each list in the order in which the policy shows them: one order, or draws of it."""
    if asked.policy == "greedy":
        yield np.lexsort((-scores_N, first_N))
        return
    rng = np.random.default_rng(0)
    for _ in range(_ORDERS):  # the order of scores with Gumbel noise is Plackett-Luce's
        yield np.lexsort((-(scores_N / asked.temperature + rng.gumbel(size=len(scores_N))), first_N))


def _pairs(first_N: Indices, size_N: Indices) -> tuple[Indices, Indices]:
    """(P,) every place with every row of its list: the row that was shown at the place, and the other row."""
    place_P = np.arange(len(first_N)).repeat(size_N)
    inside_P = np.arange(len(place_P)) - (np.cumsum(size_N) - size_N).repeat(size_N)
    return place_P, first_N[place_P] + inside_P


def _chunks(frame: pl.DataFrame, rows: int) -> Iterator[tuple[int, pl.DataFrame]]:
    for start in range(0, len(frame), rows):
        yield start, frame.slice(start, rows)
