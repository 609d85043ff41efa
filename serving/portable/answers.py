"""From logits to the fields of a scored row, with the calibrations as ``model.json`` holds them.

Letters: B rows, T tasks.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from serving.columns import VALUES, chains_of, columns
from serving.formula import SCORE, Formula
from serving.portable.files import Floats, PortableError
from serving.portable.network import sigmoid


class Answers:
    """The fields of a scored row.

    Args:
        model: The content of ``model.json``: its ``tasks``, the formula of the ``score``, and ``conditional``.

    Raises:
        ValueError: The formula is invalid, or tasks come after each other in a circle.
    """

    def __init__(self, model: Mapping[str, Any]) -> None:
        self._tasks = {task["name"]: task for task in model["tasks"]}
        self._conditional = bool(model["conditional"])
        self._score = None if model["score"] is None else Formula.parse(model["score"], list(self._tasks))
        self._chains = chains_of({name: task["after"] for name, task in self._tasks.items()})

    def __call__(self, logits_BT: Floats) -> dict[str, Floats]:
        """(B,) values by field.

        Raises:
            PortableError: The formula of the score is NaN or infinite for a row.
        """
        alone = {name: predict(task, logits_BT[:, at]) for at, (name, task) in enumerate(self._tasks.items())}
        found = columns(alone, self._chains, conditional=self._conditional, score=self._score)
        if self._score is not None and not np.isfinite(found[SCORE]).all():
            raise PortableError(f"the score {self._score.text!r} is NaN or infinite for a row: export another one.")
        return found


def predict(task: Mapping[str, Any], logits_B: Floats) -> Floats:
    """(B,) float32 predictions of one task: its entry in ``model.json`` says the kind and the calibration."""
    calibration = task["calibration"]
    if calibration is not None and calibration["kind"] == "isotonic":
        found = np.interp(logits_B, calibration["logits"], calibration["probabilities"])
        return np.asarray(found, np.float32)
    if calibration is not None:
        logits_B = calibration["slope"] * logits_B.astype(np.float64) + calibration["intercept"]
    if task["kind"] == "binary":
        return np.asarray(sigmoid(logits_B.astype(np.float64)), np.float32)
    return np.asarray(logits_B if task["kind"] in VALUES else np.exp(logits_B), np.float32)
