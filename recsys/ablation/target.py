"""What a study judges arms by: a task, its metrics, and the rows on which they are measured.

Letters: N rows.
"""

from functools import cached_property

from data_pipelines.dataset.dataset import Dataset
from data_pipelines.errors import UserError
from models.layers.heads import TaskKind
from recsys.ablation.effects import Judge
from recsys.ablation.slices import slice_masks
from recsys.config.study import StudyConfig
from recsys.evaluation.comparison import TestRows
from recsys.evaluation.evaluate import facts_of, group_kinds
from recsys.evaluation.monitor import missing_groups, why_undefined
from recsys.metrics.arrays import Floats
from recsys.metrics.binary import NORMALIZED_ENTROPY
from recsys.metrics.metric import Metric
from recsys.metrics.registry import get_metric, headline_metrics, main_metric, metrics_of


class Target:
    """The task, metrics and rows of a study.

    Args:
        study: Names the task and the metrics, unless they are the default ones.
        dataset: The data set that arms are trained on.

    Attributes:
        task: Name of the task.
        kind: Its kind.
        metrics: What arms are compared by.
        main: The metric that arms are ranked by.

    Raises:
        UserError: There is no such task or split, or a metric is not for the task or undefined on the rows.
    """

    def __init__(self, study: StudyConfig, dataset: Dataset) -> None:
        self.study, self.dataset = study, dataset
        self.task = study.task or next(iter(dataset.schema.tasks))
        if self.task not in dataset.config.tasks:
            tasks = ", ".join(dataset.config.tasks)
            raise UserError(f"ablation.task: {dataset.path} has no task `{self.task}`; it has {tasks}.")
        if not dataset.splits.get("test") or not dataset.splits.get("valid"):
            raise UserError(
                f"{dataset.path} lacks a valid or a test split: a study chooses on the valid split and judges on the "
                "test split."
            )
        self.kind: TaskKind = dataset.config.tasks[self.task].kind
        self.metrics = self._metrics()
        usual = main_metric(self.kind)
        self.main = usual if usual in self.metrics else self.metrics[0]
        for split in ("valid", "test"):
            if reason := why_undefined(self.main, self.kind, self._labels(split), facts_of(dataset, split, self.task)):
                raise UserError(
                    f"{self.main.label} of task {self.task} is undefined on the {split} split ({reason}): name other "
                    "ablation.metrics, or prepare with another split."
                )

    @cached_property
    def judge(self) -> Judge:
        """Compares arms on the test rows."""
        slices = slice_masks(self.study, self.dataset)
        facts = facts_of(self.dataset, "test", self.task)
        return Judge(self.study, self.metrics, self.main, self._labels("test"), facts, slices, kind=self.kind)

    def valid_value(self, logits_N: Floats) -> float:
        """The main metric on the valid split."""
        return self._valid.value(self.main, logits_N)

    @cached_property
    def _valid(self) -> TestRows:
        return TestRows.of(self._labels("valid"), facts_of(self.dataset, "valid", self.task), kind=self.kind)

    def _labels(self, split: str) -> Floats:
        labels_N: Floats = self.dataset.labels(split)[:, self.dataset.schema.tasks.index(self.task)]
        return labels_N

    def _metrics(self) -> list[Metric]:
        groups = group_kinds(self.dataset.config)
        if self.study.metrics is None:  # normalised entropy is log loss over a constant
            return [metric for metric in headline_metrics(self.kind, groups=groups) if metric is not NORMALIZED_ENTROPY]
        metrics = [get_metric(name) for name in self.study.metrics]
        for metric in metrics:
            if self.kind not in metric.kinds:
                known = ", ".join(m.name for m in metrics_of(self.kind, groups=groups))
                raise UserError(
                    f"ablation.metrics: {metric.label} is not for task {self.task}, which is {self.kind}: choose from "
                    f"{known}."
                )
            if missing := missing_groups(metric, groups):
                raise UserError(f"ablation.metrics: {metric.label} needs {missing}: add it.")
        return metrics
