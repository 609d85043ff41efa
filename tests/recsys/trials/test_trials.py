"""Stored trials are used as they were written, or carried out again."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from recsys.trials.trials import FIGURES, Figures, Trial, TrialStore


def trial(seed: int = 0) -> Trial:
    return Trial(config={}, features=("item",), seed=seed, dataset="d" * 32, threads=1, code="c" * 32)


def stored(store: TrialStore, seconds: float) -> bool:
    """Write the trial unless it is there; whether it was written."""
    with store.writing(trial()) as folder:
        if folder is not None:
            (folder / FIGURES).write_text(Figures(seconds=seconds).model_dump_json())
        return folder is not None


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", [FIGURES, "manifest.json"])
@pytest.mark.parametrize("damage", [Path.unlink, flip, lambda path: os.truncate(path, 3)])
def test_a_damaged_trial_is_carried_out_again(tmp_path: Path, name: str, damage: Callable[[Path], None]) -> None:
    store = TrialStore(tmp_path / "trials")
    assert (stored(store, 1.0), stored(store, 2.0)) == (True, False)
    assert store.figures_of("d" * 32) == [Figures(seconds=1.0)]
    damage(store.path(trial().name) / name)
    assert trial() not in store
    assert store.figures_of("d" * 32) == []
    assert (stored(store, 3.0), stored(store, 4.0)) == (True, False)
    assert store.figures(trial()).seconds == 3.0
