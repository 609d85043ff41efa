"""Negatives for logs that hold positives only: each row is followed by copies of itself with other items.

Draws are a function of (seed, row, number of the draw) alone, so they do not depend on how the log is read.

Letters: N rows of a chunk, K negatives per row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow.parquet as pq

from data_pipelines.arrays import to_arrow
from data_pipelines.config.learning import Sampling
from data_pipelines.disk.spill import CHUNK_ROWS
from data_pipelines.errors import UserError
from data_pipelines.features.plan import Plan
from data_pipelines.features.raw_columns import RawColumns
from data_pipelines.hashing import key_of
from data_pipelines.logs.popularity import Popularity
from data_pipelines.logs.repeats import Known, Repeats
from data_pipelines.names import DRAWN, LIST, LOG_Q, POSITIVE, ROW, SPLIT, TIME

_ATTEMPTS = 32
_GROUP = ":group"
_USER = ":user"

Ids = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Draws:
    """Negatives of N rows.

    Attributes:
        items: (N * K,) row by row.
        found: (N * K,) whether each was found.
        log_q: (N, 1 + K) of the row's own item and of those drawn, as :meth:`Popularity.log_q` gives it.
    """

    items: pl.Series
    found: npt.NDArray[np.bool_]
    log_q: npt.NDArray[np.float32]


class NegativeSampler:
    """Draws items for the rows of a log, from the distribution that ``sampling`` asks for.

    A share ``sampling.repeats`` of the draws is from what the row's user took before, the others by popularity.
    For no row its own item is drawn, nor an item of a positive of its group: that of its basket, or of its user, as
    ``sampling.exclude`` says. A row without a group (null) is alone.

    Args:
        positives: ``group`` (UInt64), ``item`` and ``split`` (0 train, 1 valid, 2 test) of every row of the log, and
            with ``sampling.window`` or ``sampling.repeats`` its ``time`` in microseconds, with the latter also its
            ``user`` (UInt64). The items of the training split are the candidates, as popular as they are there. Memory:
            8 bytes per distinct pair of a group and an item, and what :class:`Repeats` holds.

    Attributes:
        popularity: The distribution.

    Raises:
        UserError: There are fewer than two candidates.
    """

    def __init__(self, config: Sampling, positives: pl.LazyFrame) -> None:
        self.negatives, self._seed = config.negatives, config.seed
        self.popularity = Popularity(config, positives.filter((pl.col("split") == 0) & pl.col("item").is_not_null()))
        grouped = positives.drop_nulls(["group", "item"])
        groups = grouped.select(pl.col("group").unique()).collect(engine="streaming")["group"]
        self._groups = np.sort(groups.to_numpy())
        self._known = [self._pairs(grouped.filter(pl.col("split") <= split)) for split in range(3)]
        self._share = config.repeats
        self._repeats = Repeats(positives, self.popularity) if config.repeats else None

    @property
    def candidates(self) -> pl.DataFrame:
        """The candidates, as :attr:`Popularity.candidates` has them."""
        return self.popularity.candidates

    def _pairs(self, rows: pl.LazyFrame) -> Ids:
        """Sorted codes of the distinct pairs of a group and a candidate."""
        distinct = rows.select("group", "item").unique().collect(engine="streaming")
        items = self.popularity.codes(distinct["item"])
        pairs = np.searchsorted(self._groups, distinct["group"].to_numpy()) * len(self.candidates) + items
        return np.sort(pairs[items >= 0])

    def draw(self, rows: pl.DataFrame) -> Draws:
        """Items for the N rows of ``group, item, split, row`` (and ``time``, ``user``).

        Of a group only the positives of the row's split or an earlier one are left out. Where a group holds nearly all
        candidates, none may be found.
        """
        popularity, candidates = self.popularity, len(self.candidates)
        own, alone = popularity.codes(rows["item"]), rows["group"].is_null().to_numpy()
        period = popularity.periods(rows.get_column("time", default=None))
        known = None if self._repeats is None else self._repeats.known(rows["user"], rows["time"])
        groups = np.searchsorted(self._groups, rows["group"].fill_null(0).to_numpy())
        split, number = rows["split"].to_numpy(), rows["row"].to_numpy().astype(np.uint64)
        draws = np.arange(self.negatives, dtype=np.uint64)
        items_NK = np.zeros((len(rows), self.negatives), np.int64)
        open_NK = np.ones(items_NK.shape, bool)
        for attempt in range(_ATTEMPTS):
            at, draw = np.nonzero(open_NK)
            if not len(at):
                break
            chance = _uniform(self._seed, number[at], draws[draw], attempt)
            items = self._items(chance, None if period is None else period[at], None if known is None else known[at])
            items_NK[at, draw] = items
            taken = self._is_known(groups[at] * candidates + items, split[at])
            open_NK[at, draw] = (items == own[at]) | (taken & ~alone[at])
        drawn = self.candidates["item"].gather(items_NK.ravel())
        every_NK = np.concatenate([own[:, None], items_NK], axis=1).ravel()
        every = np.repeat(np.arange(len(rows)), self.negatives + 1)
        log_q = self._log_q(
            every_NK, None if period is None else period[every], None if known is None else known[every]
        )
        return Draws(drawn, ~open_NK.ravel(), log_q.reshape(len(rows), -1))

    def _items(self, uniform_N: npt.NDArray[np.float64], period_N: Ids | None, known: Known | None) -> Ids:
        """(N,) codes of candidates, from numbers in [0, 1): below ``share`` what the user knows, if there is any."""
        if self._repeats is None or known is None:
            return self.popularity.draw(uniform_N, period_N)
        repeat_N = (uniform_N < self._share) & (known.count > 0)
        within_N = np.where(
            uniform_N < self._share, uniform_N / self._share, (uniform_N - self._share) / (1 - self._share)
        )
        # A user without a past draws by popularity, by all the numbers.
        within_N = np.where(known.count > 0, within_N, uniform_N)
        items_N = self.popularity.draw(within_N, period_N)
        at = np.nonzero(repeat_N)[0]
        items_N[at] = self._repeats.draw(within_N[at], known[at])
        return items_N

    def _log_q(self, code_N: Ids, period_N: Ids | None, known: Known | None) -> npt.NDArray[np.float32]:
        """(N,) the log of how many times as likely as by a uniform draw each item is drawn."""
        log_q_N = self.popularity.log_q(code_N, period_N)
        if self._repeats is None or known is None:
            return log_q_N
        some_N = known.count > 0
        own_N = self._repeats.holds(code_N, known) / np.maximum(known.count, 1) * len(self.candidates)
        mixed_N = np.log((1 - self._share) * np.exp(log_q_N) + self._share * own_N)
        return np.where(some_N, mixed_N, log_q_N).astype(np.float32)

    def _is_known(self, pairs: Ids, split: npt.NDArray[np.int8]) -> npt.NDArray[np.bool_]:
        found = np.zeros(len(pairs), bool)
        for code, known in enumerate(self._known):
            here = split == code
            if len(known):
                place = np.minimum(np.searchsorted(known, pairs[here]), len(known) - 1)
                found[here] = known[place] == pairs[here]
        return found


def write_with_negatives(plan: Plan, rows: pl.LazyFrame, columns: Sequence[str], out: Path) -> pl.DataFrame:
    """Write ``rows`` (accepted, with ``:row`` and ``:split``) and their negatives as a Parquet file.

    The file has the raw ``columns`` of the log, ``:split``, and what :func:`with_negatives` adds. Memory grows only by
    the distinct pairs that :class:`NegativeSampler` holds.

    Returns:
        The candidates, as :attr:`NegativeSampler.candidates` has them.

    Raises:
        UserError: A column of ``sampling`` is missing, or there is nothing to draw from.
    """
    sampling, user = plan.config.drawing, plan.config.user
    assert sampling is not None
    assert sampling.item is not None
    assert user is not None
    for name in (user, sampling.item, *sampling.basket):
        if name not in columns:
            raise UserError(f"the log has no column {name!r} for `sampling`; it has {', '.join(columns)}.")
    rows = rows.filter(pl.col(SPLIT).is_not_null())
    raw = RawColumns(rows.collect_schema())
    time = [] if plan.time is None else [pl.col(TIME)]
    users = [key_of([raw.text("`user`", user)]).alias(_USER)] if sampling.repeats else []
    rows = rows.select(*columns, ROW, SPLIT, *time, *users, _group(plan, sampling, user, raw).alias(_GROUP))
    sampler = NegativeSampler(sampling, rows.select(_drawn_for(rows.collect_schema(), pl.col(_GROUP), sampling.item)))
    chunks = rows.collect_batches(chunk_size=CHUNK_ROWS, maintain_order=True, engine="streaming")
    writer: pq.ParquetWriter | None = None
    for chunk in chunks:
        both = with_negatives(chunk, sampler, group=pl.col(_GROUP), item=sampling.item)
        table = to_arrow(both.drop(ROW, _GROUP, _USER, TIME, strict=False))
        writer = writer or pq.ParquetWriter(out, table.schema)
        writer.write_table(table)
    assert writer is not None
    writer.close()
    return sampler.candidates


def _group(plan: Plan, sampling: Sampling, user: str, raw: RawColumns) -> pl.Expr:
    """UInt64: the rows whose items are not drawn for each other; null for a row that is alone."""
    if sampling.exclude == "none":
        return pl.lit(None, dtype=pl.UInt64)
    columns = [user] if sampling.exclude == "past" else sampling.basket or [user]
    texts = [raw.text("`sampling`", column) for column in columns]
    if sampling.exclude == "basket" and not sampling.basket and plan.time is not None:
        texts.append(pl.col(TIME).cast(pl.String))
    return key_of(texts)


def _drawn_for(schema: pl.Schema, group: pl.Expr, item: str) -> list[pl.Expr]:
    """What :class:`NegativeSampler` reads of rows of a log, under its names."""
    found = [group.alias("group"), pl.col(item).alias("item"), pl.col(SPLIT).alias("split")]
    return found + [pl.col(name).alias(name.removeprefix(":")) for name in (ROW, TIME, _USER) if name in schema]


def with_negatives(rows: pl.DataFrame, sampler: NegativeSampler, *, group: pl.Expr, item: str) -> pl.DataFrame:
    """Rows of a log (with ``:row`` and ``:split``), each followed by its negatives.

    ``positive`` is 1 in the former and 0 in the latter, of which ``:drawn`` is true. ``:log_q`` is the log of how many
    times as likely as by a uniform draw the row's item is drawn at its time; ``:list`` is the same for a row and its
    negatives. A negative has all of its row's columns but the item. What describes the item must therefore be joined
    afterwards.

    Args:
        rows: With ``:time`` and ``:user`` if the sampler needs them.
        group: The group of each row, as :class:`NegativeSampler` has it.
    """
    named = rows.select(_drawn_for(rows.schema, group, item))
    draws = sampler.draw(named)
    n, k = len(rows), sampler.negatives
    source = np.concatenate([np.arange(n)[:, None], n + np.arange(n * k).reshape(n, k)], axis=1).ravel()
    keep = np.concatenate([np.ones((n, 1), bool), draws.found.reshape(n, k)], axis=1).ravel()
    items = pl.concat([named["item"], draws.items]).gather(source[keep])
    copies = pl.DataFrame(rows[np.repeat(np.arange(n), k + 1)[keep]])
    is_drawn = pl.Series(DRAWN, (source >= n)[keep])
    log_q = pl.Series(LOG_Q, draws.log_q.ravel()[keep])
    lists = (pl.col(ROW).cast(pl.UInt64) + 1).alias(LIST)
    return copies.with_columns(items.alias(item), (~is_drawn).cast(pl.Int8).alias(POSITIVE), is_drawn, log_q, lists)


def _uniform(seed: int, row: Words, draw: Words, attempt: int) -> npt.NDArray[np.float64]:
    """Numbers in [0, 1) by SplitMix64 (Steele et al. 2014), each a function of its arguments alone."""
    state = np.full(row.shape, seed, np.uint64)
    for word in (row, draw, np.full(row.shape, attempt, np.uint64)):
        state = _mix(state + word * np.uint64(0x9E3779B97F4A7C15))
    return np.asarray((state >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def _mix(word: Words) -> Words:
    word = word + np.uint64(0x9E3779B97F4A7C15)
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(word ^ (word >> np.uint64(31)))
