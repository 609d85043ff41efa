"""From logits to the fields of a scored row, as :class:`serving.artifact.outputs.Outputs` does it.

Letters: B rows, T tasks.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from serving.formula import SCORE, Formula
from serving.portable.files import Floats, PortableError
from serving.portable.network import sigmoid


class Answers:
    """The fields of a scored row.

    Args:
        model: The content of ``model.json``: its ``tasks``, the formula of the ``score``, and ``conditional``.

    Raises:
        ValueError: The formula is invalid.
    """

    def __init__(self, model: Mapping[str, Any]) -> None:
        self._tasks = {task["name"]: task for task in model["tasks"]}
        self._conditional = bool(model["conditional"])
        self._score = None if model["score"] is None else Formula.parse(model["score"], list(self._tasks))
        self._chains = chains_of(self._tasks)

    def __call__(self, logits_BT: Floats) -> dict[str, Floats]:
        """(B,) values by field.

        Raises:
            PortableError: The formula of the score is NaN or infinite for a row.
        """
        alone = {name: predict(task, logits_BT[:, at]) for at, (name, task) in enumerate(self._tasks.items())}
        found = {name: np.minimum.reduce([alone[first] for first in chain]) for name, chain in self._chains.items()}
        values = dict(found)
        for name, (_, *firsts) in self._chains.items():
            if self._conditional and firsts:
                whole_B = np.maximum(found[firsts[0]], np.finfo(np.float32).tiny)
                values[f"{name}:conditional"] = found[name] / whole_B
        if self._score is not None:
            values[SCORE] = self._score(found)
            if not np.isfinite(values[SCORE]).all():
                raise PortableError(f"the score {self._score.text!r} is NaN or infinite for a row: export another one.")
        return values


def chains_of(tasks: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """For each task: its name, and those of all tasks without which it does not happen, the nearest first.

    Raises:
        PortableError: They come after each other in a circle.
    """
    found = {}
    for name in tasks:
        chain = [name]
        while (first := tasks[chain[-1]]["after"]) is not None:
            if first in chain:
                raise PortableError(f"the tasks {', '.join(chain)} come after each other in a circle: export again.")
            chain.append(first)
        found[name] = chain
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
    return np.asarray(logits_B if task["kind"] == "regression" else np.exp(logits_B), np.float32)
