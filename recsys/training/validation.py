"""The valid split during training: its metrics, and the monitored value of early stopping.

Letters: N rows, T tasks.
"""

from collections.abc import Mapping

from torch import nn

from data_pipelines.dataset.dataset import Dataset
from data_pipelines.dataset.loader import Loader
from data_pipelines.errors import UserError
from models.layers.heads import TaskKind
from recsys.evaluation.derived import derived, derived_metrics
from recsys.evaluation.evaluate import TaskMetrics, facts_by_task, group_kinds, predict, task_metrics
from recsys.evaluation.monitor import Monitor
from recsys.metrics.registry import EVERY
from recsys.runs.processes import Processes
from serving.formula import Formula

SPLIT = "valid"


class Validation:
    """Measures a ranker on the valid split, the same on every rank.

    Args:
        dataset: The data set that the ranker is trained on.
        monitor: ``train.monitor``, with its default filled in.
        score: The formula by which rows are ranked, if there is one.
        processes: The ranks that train together.

    Attributes:
        monitor: The monitored value, without metrics that the valid split leaves undefined.
        notes: One sentence about each metric that was left out.

    Raises:
        UserError: The monitor names no metric, or has none that the valid split defines.
    """

    def __init__(
        self, dataset: Dataset, monitor: Mapping[str, float], processes: Processes, *, score: Formula | None = None
    ) -> None:
        self.dataset, self._processes = dataset, processes
        self._kinds: dict[str, TaskKind] = {name: task.kind for name, task in dataset.config.tasks.items()}
        tasks, groups = dataset.config.tasks, group_kinds(dataset.config)
        besides = derived_metrics(tasks, score, groups=EVERY)
        self.monitor = Monitor.of(monitor, self._kinds, groups=groups, besides=besides)
        self.notes: list[str] = []
        if self.has_rows:
            self._labels_NT = dataset.labels(SPLIT)
            self._facts = facts_by_task(dataset, SPLIT)
            entries = list(derived(tasks, self._labels_NT, self._facts, score))
            self.monitor, self.notes = self.monitor.defined_on(
                SPLIT, self._kinds, self._labels_NT, self._facts, entries
            )
            self._entries = [entry for entry in entries if entry.name in self.monitor.entries]

    @property
    def has_rows(self) -> bool:
        """Whether there is a valid split with rows."""
        return bool(self.dataset.splits.get(SPLIT))

    def measure(self, model: nn.Module, loader: Loader) -> TaskMetrics:
        """Metrics by task: the routine ones and those that are monitored, also of what is derived from the tasks.

        Args:
            model: Gives the logits of a batch.
            loader: This rank's rows of the valid split.
        """
        rows, logits_NT = predict(model, loader, self._processes.device)
        rows, logits_NT = self._processes.gather(rows), self._processes.gather(logits_NT)
        logits = logits_NT[rows.argsort()].numpy()
        measured = {
            name: task_metrics(kind, self._labels_NT[:, t], logits[:, t], self._facts[name], also=self.monitor.names)
            for t, (name, kind) in enumerate(self._kinds.items())
        }
        return measured | {entry.name: entry.measure(logits) for entry in self._entries}


def check_train_labels(dataset: Dataset) -> None:
    """Refuse a training that cannot learn: a task without labels, or a binary task of one class.

    Raises:
        UserError: A task has no label in the train split, or all its labels there are equal.
    """
    for name, task in dataset.config.tasks.items():
        labels = dataset.summary.tasks[name]
        if not labels.labelled:
            raise UserError(
                f"task {name}: no row of the train split has a label, so nothing can be learned: check "
                f"data.tasks.{name} and data.split, and prepare the data again."
            )
        if not labels.counting:
            raise UserError(
                f"task {name}: the weights of all {labels.labelled:,} labelled rows of the train split are 0, so "
                f"nothing can be learned: check data.weight (or data.tasks.{name}.row_weight), and prepare the data "
                "again."
            )
        if task.kind == "binary" and labels.low == labels.high:
            raise UserError(
                f"task {name}: all {labels.labelled:,} labels of the train split are {labels.low:g}, so nothing can be "
                f"learned: check data.tasks.{name} (which values count as positive) and data.split, and prepare the "
                "data again."
            )
