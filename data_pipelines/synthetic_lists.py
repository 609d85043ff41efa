"""Demo logs of lists with a planted truth: relevance, what positions add, and the propensities of the logging policy.

A query shows ``size`` items in an order. The logit of a click is ``relevance + position``: how good the item is for the
query, plus what its position adds. The logging policy prefers promoted items, which are not better than others, so
clicks say more about positions than about items, until a model learns both apart. With the chance ``explore`` it
shuffles the list instead: this makes every item possible at every position, and its propensity known.

Letters: L lists, K rows of a list.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import BaseModel, ConfigDict, Field

from data_pipelines.disk.storage import new_file, write_file

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_TOPICS = 4
_START = 1_767_225_600  # 2026-01-01, in seconds
_SECONDS_PER_LIST = 60
_BASE = -0.4
_PRICE_EFFECT = 0.8
_MATCH_EFFECT = 0.9


class ListsConfig(BaseModel):
    """Shape of a demo log of lists.

    Attributes:
        lists: How many lists there are.
        size: Rows of each.
        items: How many items there are.
        explore: The chance with which the logging policy shuffles a list.
        decay: How much later positions are clicked less: position k adds ``-decay * ln(k)`` to the logit.
        promotion: How much more the logging policy goes by promotion than by relevance.
        seed: Same seed, same log.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    lists: int = Field(default=4_000, ge=10)
    size: int = Field(default=5, ge=2, le=50)
    items: int = Field(default=60, ge=2)
    explore: float = Field(default=0.3, gt=0, le=1)
    decay: float = Field(default=1.0, ge=0)
    promotion: float = Field(default=2.0, ge=0)
    seed: int = Field(default=0, ge=0)


class PlantedLists(BaseModel):
    """What is known about a demo log of lists.

    Attributes:
        positions: What each position, from 1, adds to the logit of a click.
        logged_value: Expected clicks per row under the logging policy.
        best_value: The same if lists are in descending order of relevance.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    positions: tuple[float, ...]
    logged_value: float
    best_value: float


@dataclass(frozen=True)
class DrawnLists:
    """Lists as they were shown, and the truth about them.

    Attributes:
        item, price: (L, K) of the item at each position.
        topic: (L,) of the query.
        genre: (items,) the topic that an item is about.
        relevance: (L, K) logit of a click at position 1.
        propensity: (L, K) the chance that the logging policy puts this item at this position.
        clicked: (L, K) 0 or 1.
        position: (K,) what each position adds to the logit.
    """

    item: Ints
    price: Floats
    topic: Ints
    genre: Ints
    relevance: Floats
    propensity: Floats
    clicked: Ints
    position: Floats

    def value(self, order_LK: Ints) -> float:
        """Expected clicks per row if ``order_LK[l, k]``, an index into the rows of list l, is shown at position k."""
        shown_LK = np.take_along_axis(self.relevance, order_LK, axis=1)
        return float(_sigmoid(shown_LK + self.position).mean())

    @property
    def as_logged(self) -> Ints:
        """(L, K) the order that was shown."""
        return np.broadcast_to(np.arange(len(self.position)), self.item.shape)

    @property
    def best(self) -> Ints:
        """(L, K) rows in descending order of relevance."""
        return np.argsort(-self.relevance, axis=1, kind="stable")


def draw_lists(config: ListsConfig, *, repetition: int = 0) -> DrawnLists:
    """Lists of ``config``; every ``repetition`` shows other lists, of the same items."""
    truth = np.random.default_rng([config.seed, 0])
    quality = truth.normal(0, 0.9, config.items)
    promoted = truth.normal(0, 1, config.items)
    genre = truth.integers(0, _TOPICS, config.items)
    rng = np.random.default_rng([config.seed, 1, repetition])
    shape = (config.lists, config.size)
    topic = rng.integers(0, _TOPICS, config.lists)
    item = np.argsort(rng.random((config.lists, config.items)), axis=1)[:, : config.size]
    price = np.round(rng.lognormal(3, 0.5, shape), 2)
    dearer = np.log(price) - np.log(price).mean(axis=1, keepdims=True)
    match = genre[item] == topic[:, None]
    relevance = _BASE + quality[item] + _MATCH_EFFECT * match - _PRICE_EFFECT * dearer
    preferred = np.argsort(-(relevance + config.promotion * promoted[item]), axis=1)
    shuffled = np.argsort(rng.random(shape), axis=1)
    explores = rng.random(config.lists) < config.explore
    order = np.where(explores[:, None], shuffled, preferred)
    propensity = config.explore / config.size + (1 - config.explore) * (order == preferred)
    item, price, relevance = (np.take_along_axis(part, order, axis=1) for part in (item, price, relevance))
    position = -config.decay * np.log(np.arange(1, config.size + 1))
    clicked = (rng.random(shape) < _sigmoid(relevance + position)).astype(np.int64)
    return DrawnLists(item, price, topic, genre, relevance, propensity, clicked, position)


def generate_lists(config: ListsConfig, out: Path) -> PlantedLists:
    """Write a demo log of lists to the Parquet file ``out``, and the truth beside it.

    The log has the columns ``timestamp, query, topic, item, genre, price, position, propensity, clicked``, rows of one
    query next to each other in the order in which they were shown. ``truth.parquet`` has the ``query``, ``item`` and
    true ``relevance`` of the same rows, and ``planted.json`` is a :class:`PlantedLists`.

    Raises:
        UserError: ``out`` cannot be written.
    """
    drawn = draw_lists(config)
    query = np.repeat(np.arange(config.lists), config.size)
    names = np.array(["sport", "music", "travel", "food"])
    rows = pl.DataFrame(
        {
            "timestamp": _START + _SECONDS_PER_LIST * query,
            "query": query,
            "topic": names[drawn.topic].repeat(config.size),
            "item": drawn.item.ravel(),
            "genre": names[drawn.genre[drawn.item.ravel()]],
            "price": drawn.price.ravel(),
            "position": np.tile(np.arange(1, config.size + 1), config.lists),
            "propensity": drawn.propensity.ravel(),
            "clicked": drawn.clicked.ravel().astype(np.int8),
        }
    )
    truth = rows.select("query", "item").with_columns(pl.Series("relevance", drawn.relevance.ravel()))
    for frame, path in ((rows, out), (truth, out.with_name("truth.parquet"))):
        with new_file(path) as beside:
            frame.write_parquet(beside)
    planted = PlantedLists(
        positions=tuple(drawn.position.tolist()),
        logged_value=drawn.value(drawn.as_logged),
        best_value=drawn.value(drawn.best),
    )
    write_file(out.with_name("planted.json"), planted.model_dump_json(indent=1) + "\n")
    return planted


def lists_experiment(log: str) -> dict[str, Any]:
    """The experiment, as ``load_config`` reads it, that learns relevance and positions of a demo log of lists."""
    return {
        "name": "lists",
        "seed": 0,
        "data": {
            "log": log,
            "time": "timestamp",
            "group": ["query"],
            "keys": ["query", "item"],
            "tasks": {"click": {"column": "clicked", "kind": "binary"}},
            "features": {
                "item": {"kind": "id"},
                "same_topic": {"kind": "cross", "of": ["topic", "genre"]},
                "topic": {"kind": "id"},
                "genre": {"kind": "id"},
                "price_in_list": {"kind": "relative", "column": "price", "measures": ["rank", "zscore"]},
                "position": {"kind": "id", "serve": 1},
            },
        },
        "model": {"dim": 4, "tower": {"kind": "mlp", "hidden": [16]}},
        "train": {
            "epochs": 4,
            "batch_size": 512,
            "tables": {"learning_rate": 0.1},
            "dense": {"optimizer": "adam", "learning_rate": 0.01},
            "monitor": {"logloss": -1.0},
        },
        "off_policy": {"propensity": "propensity", "position": "position"},
    }


def _sigmoid(logits: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-logits)))
