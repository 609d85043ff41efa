"""Calibrated probabilities: a monotone map from a task's logit to a probability, fitted on the validation split."""

from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

_KNOTS = 1024


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Platt(_Frozen):
    """``sigmoid(slope * logit + intercept)`` (Platt, 1999): keeps the order of rows."""

    kind: Literal["platt"] = "platt"
    slope: FiniteFloat
    intercept: FiniteFloat

    def __call__(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        return sigmoid(self.slope * logits.astype(np.float64) + self.intercept).astype(np.float32)


class Isotonic(_Frozen):
    """A non-decreasing piecewise linear map (Zadrozny & Elkan, 2002). Rows between two equal knots get equal scores."""

    kind: Literal["isotonic"] = "isotonic"
    logits: list[FiniteFloat] = Field(min_length=1)
    probabilities: list[Annotated[float, Field(ge=0, le=1)]]

    @model_validator(mode="after")
    def _knots(self) -> "Isotonic":
        if len(self.logits) != len(self.probabilities) or self.logits != sorted(self.logits):
            raise ValueError("the knots of an isotonic calibration are pairs in ascending order of their logits")
        return self

    def __call__(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.interp(logits, self.logits, self.probabilities).astype(np.float32)


Calibration = Annotated[Platt | Isotonic, Field(discriminator="kind")]


def sigmoid(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """The logistic function without overflow."""
    decay = np.exp(-np.abs(logits))
    return np.where(logits >= 0, 1.0, decay) / (1.0 + decay)


def fit_platt(
    logits: NDArray[np.float32], labels: NDArray[np.float32], weights: NDArray[np.floating] | None = None
) -> Platt:
    """The slope and intercept of maximum likelihood, by Newton's method.

    Labels are smoothed by one row of each class (Platt's targets), so that the slope stays finite for separable rows.

    Args:
        logits: (N,) logits of the rows.
        labels: (N,) 0 or 1.
        weights: (N,) how much each row counts; all the same if ``None``.
    """
    weights_N = _mean_one(weights, len(labels))
    positives = weights_N @ labels
    targets = np.where(labels > 0.5, (positives + 1) / (positives + 2), 1 / (len(labels) - positives + 2))
    center, spread = float(logits.mean(dtype=np.float64)), float(logits.std(dtype=np.float64)) or 1.0
    x_N2 = np.column_stack([(logits.astype(np.float64) - center) / spread, np.ones(len(logits))])
    mean = weights_N @ targets / len(targets)
    weights_2 = np.array([0.0, np.log(mean / (1 - mean))])  # from this start, Newton converges on standardised logits

    def loss(weights_2: NDArray[np.float64]) -> float:
        z_N = x_N2 @ weights_2
        return float(weights_N @ (np.logaddexp(0, z_N) - targets * z_N))

    for _ in range(50):
        p_N = sigmoid(x_N2 @ weights_2)
        gradient_2 = x_N2.T @ (weights_N * (p_N - targets))
        hessian_22 = (x_N2 * (weights_N * p_N * (1 - p_N))[:, None]).T @ x_N2 + 1e-9 * np.eye(2)
        step_2 = np.linalg.solve(hessian_22, gradient_2)
        while loss(weights_2 - step_2) > loss(weights_2) and np.abs(step_2).max() > 1e-10:
            step_2 /= 2
        weights_2 -= step_2
        if np.abs(step_2).max() < 1e-10:
            break
    slope = float(weights_2[0]) / spread
    return Platt(slope=slope, intercept=float(weights_2[1]) - slope * center)


def _mean_one(weights: NDArray[np.floating] | None, rows: int) -> NDArray[np.float64]:
    """Weights with mean 1, so that the sum of weights is the number of rows."""
    if weights is None:
        return np.ones(rows)
    weights_N = weights.astype(np.float64)
    return np.asarray(weights_N / weights_N.mean())


def fit_isotonic(
    logits: NDArray[np.float32], labels: NDArray[np.float32], weights: NDArray[np.floating] | None = None
) -> Isotonic:
    """Pool-adjacent-violators, reduced to at most 1024 knots; arguments as for :func:`fit_platt`."""
    from sklearn.isotonic import IsotonicRegression

    model = IsotonicRegression(out_of_bounds="clip").fit(logits, labels, sample_weight=weights)
    x, y = model.X_thresholds_, model.y_thresholds_
    kept = np.unique(np.linspace(0, len(x) - 1, min(len(x), _KNOTS)).round().astype(int))
    return Isotonic(logits=x[kept].tolist(), probabilities=y[kept].tolist())
