"""Demo logs with a planted truth: the best reachable AUC and the value of every feature are known.

A row's click probability is ``sigmoid(bias + user + item + f_s(tags, price, hour))``, where the segment ``s`` is a
hidden function of the observed ``surface`` and every segment has its own nonlinear ``f_s``. A model that routes by
surface can fit each ``f_s`` alone; a linear model sees nearly nothing of them. All signal features are drawn
independently of each other, so the value of each is known too: the AUC that is lost when the truth is averaged over
the values that it could have.

Letters: N rows of a chunk, S segments, G tags, K most tags of a row.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field
from sklearn.metrics import roc_auc_score

from data_pipelines.disk.storage import new_file, write_file

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

SIGNAL = ("user", "item", "surface", "tags", "price", "hour")
NOISE = ("noise_id", "noise_tags", "noise_number")
_CHUNK_ROWS = 1 << 18
_SURFACES = 16
_TAGS = 29  # prime, so that an arithmetic progression modulo it does not repeat a tag
_MOST_TAGS = 4
_NOISE_IDS = 50
_PRICE_MEAN, _PRICE_SPREAD = 50.0, 15.0
_START = np.datetime64("2026-01-05T00:00:00", "us")
_TEST_SHARE = 0.1
_PILOT_ROWS = 50_000
_RESAMPLES = 12
_EFFECT_ROWS = 40_000


class DemoConfig(BaseModel):
    """Shape of a demo log.

    ``user_effect`` and ``item_effect`` are the standard deviations, in logits, of what single users and items add;
    ``*_exponent`` are the Zipf exponents of how often they occur.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    rows: int = Field(default=300_000, ge=1000)
    users: int = Field(default=2_000, ge=2)
    items: int = Field(default=1_000, ge=2)
    segments: int = Field(default=4, ge=1, le=_SURFACES)
    days: int = Field(default=28, ge=1)
    user_exponent: float = Field(default=0.8, ge=0)
    item_exponent: float = Field(default=0.9, ge=0)
    user_effect: float = Field(default=0.5, ge=0)
    item_effect: float = Field(default=1.0, ge=0)
    seed: int = Field(default=0, ge=0)

    @classmethod
    def large(cls, *, rows: int = 2_000_000, seed: int = 0) -> Self:
        """A log of over half a million distinct users and items, whose model is nearly all embedding tables."""
        return cls(
            rows=rows,
            users=600_000,
            items=200_000,
            user_exponent=0.4,
            item_exponent=0.6,
            user_effect=0.5,
            item_effect=1.0,
            seed=seed,
        )


class Planted(BaseModel):
    """What is known about a demo log.

    Attributes:
        auc_ceiling: AUC of the true probabilities on the last tenth of the rows, the test split of a split by time.
        signal: Features that matter, in descending order of the AUC that is lost without them.
        noise: Features that carry no signal.
        effects: AUC that the best possible model loses on the test split without the feature.
        segments: Hidden segment of every surface.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    auc_ceiling: float
    signal: tuple[str, ...]
    noise: tuple[str, ...]
    effects: dict[str, float]
    segments: dict[str, int]


@dataclass(frozen=True, slots=True)
class _Rows:
    """The signal features of N rows; ``tags_NK`` holds a row's tags in its first ``tag_count_N`` places."""

    user: Ints
    item: Ints
    surface: Ints
    tags: Ints
    tag_count: Ints
    price: Floats
    hour: Ints

    def resample(self, feature: str, order: Ints) -> "_Rows":
        """The rows with the values of one feature shuffled."""
        names = ("tags", "tag_count") if feature == "tags" else (feature,)
        columns = {name: getattr(self, name) for name in self.__slots__}
        return _Rows(**{name: values[order] if name in names else values for name, values in columns.items()})


class _Truth:
    """The planted function from features to logits."""

    def __init__(self, config: DemoConfig, rng: np.random.Generator) -> None:
        segments = config.segments
        self.segment = rng.permutation(np.arange(_SURFACES) % segments)
        self._user = rng.normal(0, config.user_effect, config.users)
        self._item = rng.normal(0, config.item_effect, config.items)
        self._tag_SG2 = rng.normal(size=(segments, _TAGS, 2))
        self._frequency_S = rng.uniform(1.5, 2.2, segments)
        self._phase_S3 = rng.uniform(0, 2 * np.pi, (segments, 3))
        self._scale = np.ones((4, segments))
        self._shift = np.zeros((4, segments))
        pilot = _draw(config, rng.random(_PILOT_ROWS) * config.days, rng)
        parts, segment = self._parts(pilot), self.segment[pilot.surface]
        for s in range(segments):
            self._shift[:, s] = parts[:, segment == s].mean(1)
            self._scale[:, s] = parts[:, segment == s].std(1)

    def _parts(self, rows: _Rows) -> Floats:
        """Four parts of a segment's function, (4, N): of tags, price, hour, and tags with price."""
        s = self.segment[rows.surface]
        tags_N2 = np.zeros((len(s), 2))
        for k in range(_MOST_TAGS):
            tags_N2 += self._tag_SG2[s, rows.tags[:, k]] * (k < rows.tag_count)[:, None]
        tags_N2 /= rows.tag_count[:, None]
        wave = self._frequency_S[s] * (rows.price - _PRICE_MEAN) / _PRICE_SPREAD
        day = rows.hour * (2 * np.pi / 24)
        return np.stack(
            [
                np.tanh(1.5 * tags_N2[:, 0]),
                np.sin(wave + self._phase_S3[s, 0]),
                np.sin(day + self._phase_S3[s, 1]),
                np.tanh(1.5 * tags_N2[:, 1]) * np.sin(wave + self._phase_S3[s, 2]),
            ]
        )

    def probability(self, rows: _Rows) -> Floats:
        """Click probability of each row."""
        s = self.segment[rows.surface]
        tags, price, hour, both = (self._parts(rows) - self._shift[:, s]) / self._scale[:, s]
        segment = 1.65 * tags + 1.2 * price + 0.75 * hour + 0.9 * both
        logit = -0.9 + self._user[rows.user] + self._item[rows.item] + segment
        return np.asarray(1 / (1 + np.exp(-logit)))


def generate(config: DemoConfig, out: Path) -> Planted:
    """Write a demo log to the Parquet file ``out``, sorted by time, and ``planted.json`` next to it.

    The log has the columns ``timestamp, user_id, item_id, surface, hour, tags, price, noise_id, noise_tags,
    noise_number, clicked``. The same config gives the same bytes; memory does not grow with the rows.

    Raises:
        UserError: ``out`` cannot be written.
    """
    teacher, sample, *seeds = np.random.SeedSequence(config.seed).spawn(2 + -(-config.rows // _CHUNK_ROWS))
    truth = _Truth(config, np.random.default_rng(teacher))
    test_start = config.rows - int(config.rows * _TEST_SHARE)
    test: list[Floats] = []
    with new_file(out) as beside, pq.ParquetWriter(beside, _SCHEMA, compression="zstd", compression_level=1) as writer:
        for chunk, seed in enumerate(seeds):
            rng = np.random.default_rng(seed)
            first = chunk * _CHUNK_ROWS
            position = np.arange(first, min(first + _CHUNK_ROWS, config.rows))
            day = (position + rng.random(len(position))) * (config.days / config.rows)
            rows = _draw(config, day, rng)
            probability = truth.probability(rows)
            clicked = rng.random(len(position)) < probability
            writer.write_table(_table(rows, day, clicked, rng), row_group_size=_CHUNK_ROWS // 2)
            test.append(np.stack([clicked, probability])[:, max(0, test_start - first) :])
    effects = _effects(config, truth, np.random.default_rng(sample))
    planted = Planted(
        auc_ceiling=float(roc_auc_score(*np.concatenate(test, axis=1))),
        signal=tuple(sorted(effects, key=effects.__getitem__, reverse=True)),
        noise=NOISE,
        effects=effects,
        segments={_surface_name(surface): int(segment) for surface, segment in enumerate(truth.segment)},
    )
    write_file(out.with_name("planted.json"), planted.model_dump_json(indent=1) + "\n")
    return planted


def demo_experiment(log: str) -> dict[str, Any]:
    """The experiment, as ``load_config`` reads it, whose features are those of a demo log."""
    columns = {"user": "user_id", "item": "item_id", "surface": "surface", "hour": "hour", "noise_id": "noise_id"}
    return {
        "name": "demo",
        "seed": 0,
        "data": {
            "log": log,
            "time": "timestamp",
            "user": "user_id",
            "tasks": {"click": {"column": "clicked", "kind": "binary"}},
            "split": {"by": "time", "valid": 0.1, "test": _TEST_SHARE},
            "keys": ["user_id", "item_id"],
            "features": {
                **{name: {"kind": "id", "column": column} for name, column in columns.items()},
                "tags": {"kind": "bag", "column": "tags"},
                "price": {"kind": "number", "column": "price", "transform": "buckets", "buckets": 32},
                "noise_tags": {"kind": "bag", "column": "noise_tags"},
                "noise_number": {"kind": "number", "column": "noise_number", "transform": "standardize"},
            },
            "groups": {"ids": ["user", "item"], "context": ["surface", "hour"], "noise": list(NOISE)},
        },
        "model": {
            "dim": 16,
            "context": ["surface", "hour"],
            "interaction": {"kind": "cross", "layers": 1},
            "tower": {"kind": "moe", "experts": 8, "top_k": 2, "hidden": 64},
        },
        "train": {
            "epochs": 5,
            "batch_size": 2048,
            "tables": {"optimizer": "rowwise_adagrad", "learning_rate": 0.02},
            "dense": {"optimizer": "adamw", "learning_rate": 0.002},
            "monitor": {"auc": 1.0},
            "patience": 1,
        },
    }


_SCHEMA = pa.schema(
    {
        "timestamp": pa.timestamp("us"),
        "user_id": pa.int64(),
        "item_id": pa.int64(),
        "surface": pa.string(),
        "hour": pa.int8(),
        "tags": pa.list_(pa.string()),
        "price": pa.float64(),
        "noise_id": pa.string(),
        "noise_tags": pa.list_(pa.string()),
        "noise_number": pa.float64(),
        "clicked": pa.int8(),
    }
)


def _draw(config: DemoConfig, day: Floats, rng: np.random.Generator) -> _Rows:
    """Signal features of the rows that happen at ``day`` (days since the log's start), independent of each other."""
    n = len(day)
    tags, tag_count = _draw_tags(n, rng)
    return _Rows(
        user=_draw_zipf(n, config.users, config.user_exponent, rng),
        item=_draw_zipf(n, config.items, config.item_exponent, rng),
        surface=_draw_zipf(n, _SURFACES, 0.5, rng),
        tags=tags,
        tag_count=tag_count,
        price=np.round(rng.normal(_PRICE_MEAN, _PRICE_SPREAD, n), 2),
        hour=_seconds(day) // 3600 % 24,
    )


def _draw_zipf(n: int, size: int, exponent: float, rng: np.random.Generator) -> Ints:
    """``n`` ids below ``size``; the id of rank r occurs in proportion to (r + 1) ** -exponent."""
    share = np.cumsum(np.arange(1, size + 1, dtype=np.float64) ** -exponent)
    return np.asarray(np.minimum(np.searchsorted(share, rng.random(n) * share[-1]), size - 1), dtype=np.int64)


def _draw_tags(n: int, rng: np.random.Generator) -> tuple[Ints, Ints]:
    """Distinct tags (n, K), and how many of them each row shows, (n,): from 1 to K."""
    first, step = rng.integers(0, _TAGS, n), rng.integers(1, _TAGS, n)
    tags_NK = (first[:, None] + step[:, None] * np.arange(_MOST_TAGS)) % _TAGS
    return tags_NK, rng.integers(1, _MOST_TAGS + 1, n)


def _seconds(day: Floats) -> Ints:
    """Seconds since the log's start, busier in the evening than in the night; keeps the order of ``day``."""
    fraction = day % 1
    return np.asarray((np.floor(day) + fraction + 0.1 * np.sin(2 * np.pi * fraction)) * 86_400, dtype=np.int64)


def _table(rows: _Rows, day: Floats, clicked: npt.NDArray[np.bool_], rng: np.random.Generator) -> pa.Table:
    """The rows as they are in the log, with the noise columns."""
    n = len(day)
    noise_tags, noise_count = _draw_tags(n, rng)
    return pa.table(
        {
            "timestamp": pa.array(_START + _seconds(day).astype("timedelta64[s]")),
            "user_id": rows.user,
            "item_id": rows.item,
            "surface": _names(_SURFACES, _surface_name, rows.surface),
            "hour": rows.hour,
            "tags": _lists(rows.tags, rows.tag_count, "tag"),
            "price": rows.price,
            "noise_id": _names(_NOISE_IDS, "n{:02}".format, _draw_zipf(n, _NOISE_IDS, 0.7, rng)),
            "noise_tags": _lists(noise_tags, noise_count, "noise"),
            "noise_number": rng.normal(size=n),
            "clicked": clicked.astype(np.int8),
        }
    ).cast(_SCHEMA)


def _surface_name(surface: int) -> str:
    return f"surface{surface:02}"


def _names(size: int, name: Callable[[int], str], index: Ints) -> pa.Array:
    return pa.array([name(i) for i in range(size)]).take(pa.array(index))


def _lists(tags_NK: Ints, count: Ints, prefix: str) -> pa.Array:
    shown = tags_NK[np.arange(_MOST_TAGS) < count[:, None]]
    offsets = np.concatenate([[0], np.cumsum(count)]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, _names(_TAGS, (prefix + "{:02}").format, shown))


def _effects(config: DemoConfig, truth: _Truth, rng: np.random.Generator) -> dict[str, float]:
    """AUC that the true probabilities lose when one feature's truth is averaged over its values."""
    n = _EFFECT_ROWS
    rows = _draw(config, rng.random(n) * config.days, rng)
    probability = truth.probability(rows)
    clicked = rng.random(n) < probability
    best = roc_auc_score(clicked, probability)
    effects = {}
    for feature in SIGNAL:
        resampled = (truth.probability(rows.resample(feature, rng.permutation(n))) for _ in range(_RESAMPLES))
        effects[feature] = float(best - roc_auc_score(clicked, sum(resampled, np.zeros(n))))
    return effects
