"""FuxiCTR's models, trained in its own environment on the arrays of our data sets.

On Frappe each has the hyperparameters with which it stands on the public leaderboard; on MovieLens-1M a tower of
400-400 and the best of three embedding regularisers by valid AUC.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.common import peer_says
from recsys.metrics.arrays import Floats


class Trained(NamedTuple):
    """What training came to.

    Attributes:
        logits_N: Of the test split.
        valid_aucs: After each epoch; the weights of the best were kept.
    """

    logits_N: Floats
    valid_aucs: list[float]
    parameters: int
    checkpoint_bytes: int
    seconds: float


@dataclass(frozen=True)
class Peer:
    """A model of ``fuxictr_models.py``, and the arguments of its constructor."""

    model: str
    settings: Mapping[str, Any]

    @property
    def name(self) -> str:
        return f"FuxiCTR {self.model}"

    def train(self, arrays: Path, seed: int, run: Path) -> Trained:
        """Train on what ``write_arrays`` wrote, predict the test split, and leave the weights in ``run``."""
        said = self._say("train", arrays, seed, run)
        scores_N = np.load(run / "scores.npy")
        nearest = float(np.finfo(np.float32).eps)  # a probability of one has no logit
        scores_N = np.clip(scores_N, nearest, 1 - nearest)
        return Trained(np.log(scores_N) - np.log1p(-scores_N), **said)

    def rate(self, arrays: Path, seed: int, run: Path) -> float:
        """Encoded rows per second that the model in ``run`` predicts on one thread."""
        return float(self._say("rate", arrays, seed, run)["rows_per_s"])

    def _say(self, command: str, arrays: Path, seed: int, run: Path) -> dict[str, Any]:
        asked = json.dumps({"model": self.model, "settings": self.settings, "seed": seed})
        said: dict[str, Any] = peer_says("fuxictr", "fuxictr_accuracy.py", command, arrays, asked, run)
        return said


FRAPPE_PEERS = (
    Peer("FinalNet", {"dim": 10, "hidden": [[400, 400], [400]], "dropout": 0.1, "regularizer": 0.1}),
    Peer(
        "FinalMLP",
        {
            "dim": 10,
            "contexts": ["user", "item"],
            "gate": [400],
            "hidden": [[400], [100]],
            "heads": 5,
            "dropout": 0.4,
            "regularizer": 0.05,
        },
    ),
    Peer(
        "DCNv2",
        {"dim": 10, "layers": 4, "hidden": [400, 400, 400], "dropout": 0.4, "batch_norm": True, "regularizer": 0.05},
    ),
)
MOVIELENS_PEERS = (
    Peer("DIN", {"dim": 16, "hidden": [400, 400], "attention": [64], "regularizer": 0.01}),
    Peer("DCNv2", {"dim": 16, "layers": 3, "hidden": [400, 400], "regularizer": 0.01}),
)
