"""A study from its plan to its effects: which trials are needed, running them, and what they show.

Letters: N test rows, S seeds.
"""

import json
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl
import torch

from data_pipelines.dataset.dataset import Dataset
from data_pipelines.errors import UserError
from models.ranker import Ranker
from models.tables.lookup import SparseTables
from recsys.ablation import selection
from recsys.ablation.arms import BASE, CORE, Arm, Units, narrow, plan_arms
from recsys.ablation.slices import slice_masks
from recsys.ablation.target import Target
from recsys.config.experiment import ExperimentConfig, chosen_features
from recsys.config.study import StudyConfig
from recsys.config.yaml_files import override
from recsys.metrics.arrays import Floats
from recsys.trials.code import code_fingerprint
from recsys.trials.execution import experiment
from recsys.trials.trials import Figures, Trial, TrialStore
from recsys.trials.workers import Workers

_META = torch.device("meta")
_LOOK_SECONDS = 2.0
"""Assumed seconds of evaluating a changed model, if none has been timed yet."""


@dataclass(frozen=True)
class Progress:
    """How far a study is.

    Attributes:
        done: Finished trials, of those ``known`` so far.
        fresh: Trials that were run since the study was started or resumed.
        latest: Arm of the trial that finished last.
        complete: Arms whose trials have all finished.
    """

    done: int
    known: int
    fresh: int
    latest: str
    complete: Sequence[Arm]


@dataclass(frozen=True)
class Plan:
    """What a study would do.

    Attributes:
        missing: Trials of each arm that are not in the store.
        seconds: Time of the missing trials; ``basis`` says what the estimate is based on.
        disk: Bytes that the missing trials will leave.
    """

    arms: Sequence[Arm]
    missing: Mapping[str, int]
    seconds: float
    basis: str
    disk: int
    jobs: int


@dataclass
class Study:
    """Arms, seeds and their trials.

    Args:
        config: The experiment; its ``ablation`` block is the study.
        workers: Run the trials, and hold the store.

    Raises:
        UserError: The study names what is not there, an arm would have no feature, or a metric lacks its column.
    """

    config: ExperimentConfig
    dataset: Dataset
    workers: Workers
    arms: list[Arm] = field(init=False)
    units: Units = field(init=False)
    target: Target = field(init=False)
    stopped: dict[str, int] = field(default_factory=dict)
    _known: set[str] = field(default_factory=set)
    _fresh: int = 0
    _values: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.target = Target(self.study, self.dataset)
        slice_masks(self.study, self.dataset)
        features = chosen_features(self.config, self.dataset)
        self.units = Units(self.config.data, features)
        loss, experts = self.config.train.loss, self.config.model.tower.experts_by_block()
        self.arms = plan_arms(self.study, self.config.data, features, loss=loss, experts=experts)
        for arm in self.arms:
            if arm.trains:
                self._check_arm(arm)

    @property
    def study(self) -> StudyConfig:
        return self.config.ablation

    @property
    def store(self) -> TrialStore:
        return self.workers.store

    @property
    def seeds(self) -> range:
        return range(self.config.seed, self.config.seed + self.study.seeds)

    @property
    def task(self) -> str:
        """Name of the task that arms are judged by."""
        return self.target.task

    def trials(self, arm: Arm) -> list[Trial]:
        """One trial a seed."""
        return [self._trial(arm, seed) for seed in self.seeds[: self.stopped.get(arm.name, self.study.seeds)]]

    def plan(self) -> Plan:
        """Which trials are missing, and the time and disk space that they need."""
        missing = {arm.name: sum(trial not in self.store for trial in self.trials(arm)) for arm in self.arms}
        of_arm = [arm for arm in self.arms for _ in range(missing[arm.name])]
        known = self.store.figures_of(self.dataset.manifest.fingerprint)
        trained = [figures.seconds for figures in known if figures.steps]
        looks = [figures.seconds for figures in known if not figures.steps]
        basis = f"from {len(trained)} finished trainings on this data set"
        if not trained and of_arm:
            trained = [self.workers.probe(self._trial(self.arms[0], self.config.seed))]
            basis = "from the first steps of one training, if none stops early"
        each = {True: statistics.median(trained or [0.0]), False: statistics.median(looks or [_LOOK_SECONDS])}
        seconds = sum(each[arm.trains] for arm in of_arm) / self.workers.engine.jobs
        rows = self.dataset.splits["test"] + self.dataset.splits.get("valid", 0)
        tables = sum(table.rows * self.config.model.table_dim(table.name) for table in self.dataset.schema.tables)
        disk = len(of_arm) * 4 * rows + missing[BASE] * 4 * tables
        return Plan(self.arms, missing, seconds, basis, disk, self.workers.engine.jobs)

    def run(self, observe: Callable[[Progress], None] = lambda progress: None) -> None:
        """Run every trial that the store does not have; after a kill, only unfinished trials run again."""
        varied = [arm for arm in self.arms if arm.kind in ("vary", "grid")]
        halved = {arm.name for arm in varied} if self.study.halving else set()
        self._carry_out([arm for arm in self.arms if arm.trains and arm.name not in halved], observe)
        if reason := self.failure(self.arms[0]):
            raise UserError(f"the base model, which all arms are compared with, failed: {reason}.")
        if halved:
            self._halve(varied, observe)
        self._carry_out([arm for arm in self.arms if not arm.trains], observe)
        self._search(observe)

    def effects(self) -> pl.DataFrame:
        """Every arm's effects, see :data:`~recsys.ablation.effects.EFFECT_COLUMNS`."""
        return self.target.judge.effects(self.arms, self.logits)

    def interactions(self) -> pl.DataFrame:
        """Interactions of the pairs, see :data:`~recsys.ablation.effects.INTERACTION_COLUMNS`."""
        return self.target.judge.interactions(self.arms, self.logits)

    @property
    def logits(self) -> dict[str, dict[str, Floats]]:
        """Test logits by arm, then by trial; arms that failed are left out."""
        return {
            arm.name: {trial.name: self.store.logits(trial, "test", self.task) for trial in self.trials(arm)}
            for arm in self.arms
            if not self.failure(arm)
        }

    def figures(self, arm: Arm) -> list[Figures]:
        return [self.store.figures(trial) for trial in self.trials(arm)]

    def failure(self, arm: Arm) -> str:
        """Why a trial of the arm failed; empty if none did."""
        return next((figures.failed for figures in self.figures(arm) if figures.failed), "")

    def valid_value(self, arm: Arm, seeds: int | None = None) -> float:
        """The main metric on the valid split, mean over seeds (the first ``seeds`` of them); NaN if a trial failed."""
        return statistics.mean(self._valid_value(trial) for trial in self.trials(arm)[:seeds])

    def score(self, arm: Arm, seeds: int | None = None) -> float:
        """:meth:`valid_value` on a scale on which larger is better; minus infinity if a trial failed."""
        value = self.target.main.goodness(self.valid_value(arm, seeds))
        return value if math.isfinite(value) else -math.inf

    def _valid_value(self, trial: Trial) -> float:
        if trial.name not in self._values:
            self._values[trial.name] = math.nan
            if not self.store.failure(trial.name):
                value = self.target.valid_value(self.store.logits(trial, "valid", self.task))
                self._values[trial.name] = value
        return self._values[trial.name]

    def recommended(self) -> Arm:
        """The arm with the fewest features whose value on the valid split is within the tolerance of the best."""
        arms = {arm.features: arm for arm in reversed(self.arms) if arm.trains and not arm.overrides}
        scores = {features: self.score(arm) for features, arm in arms.items()}
        return arms[selection.smallest_within(scores, self.study.tolerance)]

    def experiment(self, arm: Arm) -> ExperimentConfig:
        """The config of an arm, ready to be trained with ``recsys train``."""
        config = experiment(self._trial(arm, self.config.seed), self.dataset)
        keys = {"mlflow", "checkpoint_every", "keep_checkpoints"}
        train = config.train.model_copy(update={key: getattr(self.config.train, key) for key in keys})
        return config.model_copy(update={"name": self.config.name, "data": self.config.data, "train": train})

    def _trial(self, arm: Arm, seed: int) -> Trial:
        if not arm.trains:
            base = self._trial(self.arms[0], seed)
            changed = arm.units if arm.change == "leave_out_expert" else self._members(arm)
            return base.model_copy(
                update={"keep_run": False, "parent": base.name, "change": arm.change, "changed": changed}
            )
        content = self._content(arm)
        return Trial(
            config={block: content[block] for block in ("model", "train", "sparsity", "export")},
            features=arm.features,
            seed=seed,
            dataset=self.dataset.manifest.fingerprint,
            threads=self.workers.engine.threads,
            keep_run=arm.kind == "base",
            code=code_fingerprint(),
        )

    def _members(self, arm: Arm) -> tuple[str, ...]:
        """The features of the arm's units, in the order of the config."""
        members = {feature for unit in arm.units for feature in self.units[unit]}
        return tuple(name for name in arm.features if name in members)

    def _content(self, arm: Arm) -> dict[str, Any]:
        """The arm's config as plain values, without keys about features that have been removed."""
        assignments = [f"{key}={json.dumps(value)}" for key, value in arm.overrides.items()]
        schema = self.dataset.encoder.select(arm.features).schema
        content = override(self.config.model_dump(mode="json"), assignments)
        return narrow(content, arm.features, [table.name for table in schema.tables])

    def _check_arm(self, arm: Arm) -> None:
        """Refuse an arm whose config cannot be trained, before any training."""
        config = experiment(self._trial(arm, self.config.seed), self.dataset)
        schema = self.dataset.encoder.select(arm.features).schema
        try:
            with _META:
                Ranker(config.model, schema, SparseTables(schema, config.model, device=_META))
        except UserError as error:
            raise UserError(f"arm `{arm.name}` cannot be trained: {error}") from None

    def _carry_out(self, arms: Iterable[Arm], observe: Callable[[Progress], None], seeds: int | None = None) -> None:
        """Seed by seed, so that the leaderboard is complete in its first seed early."""
        arms = list(arms)
        trials = {arm.name: self.trials(arm)[:seeds] for arm in arms}
        by_seed = [(arm, ts[s]) for s in range(self.study.seeds) for arm in arms if s < len(ts := trials[arm.name])]
        names = {trial.name: arm.name for arm, trial in by_seed}
        self._known |= names.keys()

        def done(trial: Trial) -> None:
            self._fresh += 1
            left = sum(trial not in self.store for _, trial in by_seed)
            complete = [arm for arm in self.arms if all(trial in self.store for trial in self.trials(arm))]
            observe(Progress(len(self._known) - left, len(self._known), self._fresh, names[trial.name], complete))

        self.workers.run([trial for _, trial in by_seed], done)

    def _halve(self, arms: list[Arm], observe: Callable[[Progress], None]) -> None:
        """Successive halving over seeds: after each, only the better half continues (arXiv 1502.07943)."""
        running = arms
        for seeds in range(1, self.study.seeds + 1):
            self._carry_out(running, observe, seeds)
            if seeds == self.study.seeds:
                return
            score = {arm.name: self.score(arm, seeds) for arm in running}
            running = sorted(running, key=lambda arm: -score[arm.name])
            for arm in running[max(1, -(-len(running) // 2)) :]:
                self.stopped[arm.name] = seeds
            running = [arm for arm in running if arm.name not in self.stopped]

    def _search(self, observe: Callable[[Progress], None]) -> None:
        """Train the sets of features that the selection strategy asks for, until it is done."""
        everything, tolerance = self.arms[0].features, self.study.tolerance
        core = next((arm.features for arm in self.arms if arm.name == CORE), ())
        match self.study.selection:
            case "none":
                return
            case "forward":
                search = selection.forward(everything, core, tolerance=tolerance)
            case "backward":
                search = selection.backward(everything, tolerance=tolerance)
            case "path":
                search = selection.path(everything, tolerance=tolerance)
        wanted = next(search, None)
        while wanted is not None:
            arms = [self._arm_of(features) for features in wanted]
            self._carry_out(arms, observe)
            try:
                wanted = search.send({arm.features: self.score(arm) for arm in arms})
            except StopIteration:
                wanted = None

    def _arm_of(self, features: tuple[str, ...]) -> Arm:
        """The arm that trains on ``features`` only: an existing one, or a new one of kind ``selection``."""
        for arm in self.arms:
            if arm.features == features and arm.trains and not arm.overrides:
                return arm
        gone = [name for name in self.arms[0].features if name not in features]
        name = f"only {', '.join(features)}" if len(features) < len(gone) else f"without {', '.join(gone)}"
        arm = Arm(name, "selection", features, units=tuple(gone))
        self._check_arm(arm)
        self.arms.append(arm)
        return arm
