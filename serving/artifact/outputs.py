"""What an artifact answers with: predictions of the tasks, and what is computed from them.

Letters: N rows, T tasks.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from data_pipelines.config.learning import Task
from serving.artifact.calibration import Calibration, sigmoid
from serving.columns import CONDITIONAL, VALUES, Values, chains_of, columns
from serving.formula import SCORE, Formula


@dataclass(frozen=True)
class Outputs:
    """The columns of scores, in order: a prediction of each task, then what is asked for besides.

    Attributes:
        tasks: The tasks by name, in the order of the logits.
        calibration: Calibrations of binary tasks, for those that have one.
        conditional: Whether tasks that happen only after another one also give their conditional probability.
        score: The formula by which rows are ranked, if there is one.
    """

    tasks: Mapping[str, Task]
    calibration: Mapping[str, Calibration]
    conditional: bool = False
    score: Formula | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the columns."""
        given = [f"{name}{CONDITIONAL}" for name, task in self.tasks.items() if self.conditional and task.after]
        return (*self.tasks, *given, *([SCORE] if self.score is not None else []))

    @property
    def ranks_by(self) -> str:
        """The column by which rows are ranked: the score, or the first task."""
        return next(iter(self.tasks)) if self.score is None else SCORE

    def __call__(self, logits_NT: NDArray[np.float32]) -> dict[str, Values]:
        """(N,) values by column.

        A binary task gives a probability, calibrated if possible; a count, a duration or a level its expected
        value; a regression the value itself. The probability of a task is at most that of the task that it comes after.
        """
        alone = {name: self._prediction(name, logits_NT[:, t]) for t, name in enumerate(self.tasks)}
        return columns(alone, self._chains, conditional=self.conditional, score=self.score)

    @cached_property
    def _chains(self) -> dict[str, list[str]]:
        return chains_of({name: task.after for name, task in self.tasks.items()})

    def _prediction(self, name: str, logits_N: NDArray[np.float32]) -> Values:
        logits_N = np.ascontiguousarray(logits_N)
        if name in self.calibration:
            return self.calibration[name](logits_N)
        kind = self.tasks[name].kind
        if kind == "binary":
            return sigmoid(logits_N.astype(np.float64)).astype(np.float32)
        return logits_N if kind in VALUES else np.exp(logits_N)
