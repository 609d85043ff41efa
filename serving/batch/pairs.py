"""Many candidates for each user: all pairs, or the best k, with the work of each side done once.

A feature whose columns all come from the candidates is encoded and looked up once per candidate; one whose columns all
come from the user, once per user. The same holds for histories: the terms of attention that depend only on events are
computed once for all candidates. Features of both sides, such as a cross, are encoded per pair. Interaction and tower
compute every pair: only the first cross layer's product is a sum of a user's part and a candidate's, about a hundredth
of the operations. The cross product of users and candidates is never materialized.

Letters: U users of a chunk, C candidates, P = U x C pairs, user by user.
"""

from collections.abc import Iterator

import numpy as np
import polars as pl
import torch
from torch import Tensor

from data_pipelines.errors import UserError
from data_pipelines.features.encoder import Encoder
from data_pipelines.names import ROW, key_name
from models.tables.lookup import Embedded
from serving.batch.scorer import Scorer, in_lists
from serving.batch.value_counts import ValueCounts

_PAIRS = 1 << 16

Spread = tuple[Tensor, Tensor]
"""Rows of one side, and for each of P pairs the position of its row."""

_Embedded = tuple[Embedded, dict[str, Tensor]]


class PairScorer:
    """Scores users against one table of candidates.

    Statistics of candidates are as of the last event of the state. The candidates are one list, to which ``relative``
    features refer.

    Args:
        candidates: Raw columns of the candidates, such as ``item_id`` and ``genres``. Encoded and looked up here.

    Attributes:
        candidate_counts: How many values of the candidates are known.

    Raises:
        UserError: No feature reads the candidates' columns, or the model has tables that cannot be split this way.
    """

    def __init__(self, scorer: Scorer, candidates: pl.DataFrame) -> None:
        if scorer.ranker.managed_ids is not None:
            raise UserError("a model with managed ids scores rows, not pairs: write the pairs as rows.")
        self._scorer, self._candidates = scorer, candidates
        encoder = scorer.artifact.encoder
        named = set(candidates.columns)
        features = {name: encoder.plan.feature(name) for name in encoder.schema.feature_names}
        columns = {name: feature.columns() | feature.optional_columns() for name, feature in features.items()}
        mine = [name for name, wanted in columns.items() if wanted and wanted <= named]
        if not mine:
            read = ", ".join(sorted({column for wanted in columns.values() for column in wanted}))
            raise UserError(
                f"no feature reads only the candidates' columns {', '.join(candidates.columns)}: add the columns of "
                f"one; the features read {read}."
            )
        compared = {name for name in columns if encoder.plan.feature(name).name in encoder.plan.relative}
        theirs = [name for name, wanted in columns.items() if not wanted & named and name not in compared]
        both = [name for name in columns if name not in {*mine, *theirs}]
        self._sides = [_Side(scorer, names) if names else None for names in (theirs, mine, both)]
        everyone = in_lists(candidates, np.ones(len(candidates)))
        self.candidate_counts = ValueCounts()
        self._own = self._sides[1].embed(everyone, self.candidate_counts) if self._sides[1] else None
        if scorer.device.type != "cpu":
            torch.cuda.synchronize(scorer.device)  # other threads read it on streams of their own

    def score(
        self, users: pl.DataFrame, counts: ValueCounts | None = None
    ) -> Iterator[tuple[pl.DataFrame, np.ndarray]]:
        """Chunks of ``users`` (at least one) and the logits (U, C, T) of their pairs.

        Args:
            counts: Counts the known values of the users, when given.

        Raises:
            UserError: Users and candidates have a column in common, which would be ambiguous.
            UnavailableError: Scores are NaN or infinite, or a file of the artifact was written in place.
        """
        plan = self._scorer.artifact.encoder.served
        read = plan.row_columns | plan.optional_columns
        common = sorted(read & set(users.columns) & set(self._candidates.columns))
        if common:
            raise UserError(
                f"users and candidates both have the column {', '.join(map(repr, common))}: a column of the model must "
                "be in one of the two tables only, so remove it from the other."
            )
        self._scorer.artifact.check_mapped()
        if counts is not None:
            counts.observe_rows(users, plan.row_columns)
        numbers = users[ROW].to_numpy() if ROW in users.columns else np.arange(len(users))
        size = max(1, _PAIRS // max(len(self._candidates), 1))
        for start in range(0, max(len(users), 1), size):
            chunk = users.slice(start, size)
            with self._scorer.computing():
                logits_PT = self._logits(chunk, counts)
            self._scorer.check_finite(logits_PT, numbers[start : start + size].repeat(self.candidates))
            yield chunk, logits_PT.reshape(len(chunk), self.candidates, len(self._scorer.tasks))

    @property
    def candidates(self) -> int:
        """The number of candidates."""
        return len(self._candidates)

    def all_pairs(self, users: pl.DataFrame, *, counts: ValueCounts | None = None) -> pl.DataFrame:
        """Key columns of user and candidate, and every task's prediction; user by user, candidates in their order.

        Args:
            counts: Counts the known values of the users, when given.
        """
        parts = []
        for chunk, logits_UCT in self.score(users, counts):
            places = np.tile(np.arange(self.candidates), (len(chunk), 1))
            predictions = self._scorer.predict(logits_UCT.reshape(-1, logits_UCT.shape[2]))
            parts.append(self._keys(chunk, places).with_columns(**predictions))
        return pl.concat(parts)

    def top_k(
        self, users: pl.DataFrame, k: int, *, task: str | None = None, counts: ValueCounts | None = None
    ) -> pl.DataFrame:
        """The k best candidates of each user, best first (ties in the candidates' order).

        Args:
            task: The task, or other column of the scores, to rank by; the score if the artifact has a formula, else
                the first task.
            counts: Counts the known values of the users, when given.

        Returns:
            Key columns of the user, key columns of the candidate, ``rank`` from 1, and the column ranked by.

        Raises:
            UserError: ``k`` is below 1, or there is no such task.
        """
        outputs = self._scorer.artifact.outputs
        task = task or outputs.ranks_by
        if k < 1 or task not in outputs.names:
            raise UserError(f"k must be at least 1 and the task one of {', '.join(outputs.names)}: {k}, {task!r}.")
        k = min(k, len(self._candidates))
        parts = []
        for chunk, logits_UCT in self.score(users, counts):
            best_UK = np.argsort(-self.ranked_by(logits_UCT, task), axis=1, kind="stable")[:, :k]
            best_NT = np.take_along_axis(logits_UCT, best_UK[:, :, None], 1).reshape(-1, logits_UCT.shape[2])
            predictions = self._scorer.predict(best_NT)
            ranks = pl.Series("rank", np.tile(np.arange(1, k + 1, dtype=np.int32), len(chunk)))
            parts.append(self._keys(chunk, best_UK).with_columns(ranks, pl.Series(task, predictions[task])))
        return pl.concat(parts)

    def ranked_by(self, logits_UCT: np.ndarray, column: str) -> np.ndarray:
        """(U, C) what orders candidates by a column of the scores: of a task its logits, which have fewer ties."""
        if column in self._scorer.tasks:
            return logits_UCT[:, :, self._scorer.tasks.index(column)]
        return self._scorer.predict(logits_UCT.reshape(-1, logits_UCT.shape[2]))[column].reshape(logits_UCT.shape[:2])

    def _keys(self, users: pl.DataFrame, places_UK: np.ndarray) -> pl.DataFrame:
        """Key columns of each user next to those of its candidates."""
        taken = {"rank", *self._scorer.artifact.outputs.names}
        keys = {key: key_name(key, taken) for key in self._scorer.artifact.encoder.config.keys}
        whose = users.select(pl.col(key).alias(name) for key, name in keys.items() if key in users.columns)
        there = self._candidates.columns
        which = self._candidates.select(pl.col(key).alias(name) for key, name in keys.items() if key in there)
        rows = [whose[np.arange(len(users)).repeat(places_UK.shape[1])], which[places_UK.ravel()]]
        return pl.concat(rows, how="horizontal")

    def _logits(self, users: pl.DataFrame, counts: ValueCounts | None) -> np.ndarray:
        """(P, T)."""
        every_P = torch.arange(len(users) * self.candidates, device=self._scorer.device)
        whose_P, which_P = every_P // max(self.candidates, 1), every_P % max(self.candidates, 1)
        theirs, _, both = self._sides
        sides: list[tuple[_Embedded, Tensor]] = []
        if theirs is not None:
            sides.append((theirs.embed(users, counts), whose_P))
        if self._own is not None:
            sides.append((self._own, which_P))
        if both is not None:
            shared = [name for name in users.columns if name not in self._candidates.columns]
            whose, which = whose_P.cpu().numpy(), which_P.cpu().numpy()
            rows = [users.select(shared)[whose], self._candidates[which]]
            pairs = in_lists(pl.concat(rows, how="horizontal"), whose + 1)
            sides.append((both.embed(pairs), every_P))
        pooled, wide, dense = dict[str, Spread](), dict[str, Spread](), dict[str, Spread]()
        for (embedded, numbers), places_P in sides:
            pooled |= {name: (value, places_P) for name, value in embedded.pooled.items()}
            wide |= {name: (value, places_P) for name, value in embedded.wide.items()}
            dense |= {name: (value, places_P) for name, value in numbers.items()}
        order = [dense[feature.name] for feature in self._scorer.artifact.encoder.schema.dense]
        logits = []
        for (embedded, _), places_P in sides:
            pooled |= self._histories(embedded, places_P, whose_P, pooled)
        for tile in torch.split(every_P, self._scorer.batch_rows):
            dense_BD = [_at(tile, value) for value in order]
            logits.append(
                self._scorer.ranker.rank(
                    {name: _at(tile, value) for name, value in pooled.items()},
                    torch.cat(dense_BD, 1) if dense_BD else torch.empty(len(tile), 0, device=tile.device),
                    {name: _at(tile, value) for name, value in wide.items()},
                ).float()
            )
        return torch.cat(logits).cpu().numpy() if logits else np.empty((0, len(self._scorer.tasks)), np.float32)

    def _histories(
        self, embedded: Embedded, places_P: Tensor, whose_P: Tensor, pooled: dict[str, Spread]
    ) -> dict[str, Spread]:
        """The pooled histories of one side: those of users once for all candidates, others pair by pair."""
        histories, every_P = self._scorer.ranker.histories, torch.arange(len(whose_P), device=whose_P.device)
        queries = {name for names in histories.candidates.values() for name in names}
        asked = {name: _at(every_P, pooled[name]) for name in queries}
        if places_P is not whose_P:
            sequences = {name: _spread(*bags, places_P) for name, bags in embedded.sequences.items()}
            return {name: (value, every_P) for name, value in histories(Embedded(asked, sequences, {})).items()}
        asked = {name: value.view(-1, self.candidates, value.shape[1]) for name, value in asked.items()}
        found = histories(Embedded(asked, embedded.sequences, {}))
        return {
            name: (value, whose_P) if value.dim() == 2 else (value.flatten(0, 1), every_P)
            for name, value in found.items()
        }


class _Side:
    """The features of one side: how to encode them, and to look them up."""

    def __init__(self, scorer: Scorer, names: list[str]) -> None:
        self._scorer = scorer
        self._encoder: Encoder = scorer.artifact.encoder.select(names)
        self._tables = scorer.artifact.tables(self._encoder.schema, device=scorer.device)

    def embed(self, rows: pl.DataFrame, counts: ValueCounts | None = None) -> _Embedded:
        """Embeddings of the sparse features and values of the dense ones, one row each; optionally counted."""
        batch = self._scorer.encode_part(rows, self._encoder)
        if counts is not None:
            counts.observe(self._encoder.schema, batch)
        widths = [feature.width for feature in self._encoder.schema.dense]
        with self._scorer.computing():
            batch = self._scorer.on_device(batch)
            numbers = torch.split(batch.dense, widths, 1) if widths else ()
            return self._tables(batch), dict(
                zip((feature.name for feature in self._encoder.schema.dense), numbers, strict=True)
            )


def _at(pairs: Tensor, spread: Spread) -> Tensor:
    """The rows of some pairs."""
    values, places_P = spread
    return values[places_P[pairs]]


def _spread(values_Ld: Tensor, offsets: Tensor, places_P: Tensor) -> tuple[Tensor, Tensor]:
    """The concatenated bags at ``places_P``."""
    lengths_P = offsets.diff()[places_P]
    ends = torch.cat([lengths_P.new_zeros(1), lengths_P.cumsum(0)])
    inside = torch.arange(int(ends[-1]), device=ends.device) - ends[:-1].repeat_interleave(lengths_P)
    return values_Ld[offsets[:-1][places_P].repeat_interleave(lengths_P) + inside], ends
