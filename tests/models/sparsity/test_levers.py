"""Every lever as a user meets it: trained, resumed, spread over ranks, exported; what goes, and that scores hold."""

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from stopping import stop_after

from data_pipelines.dataset.dataset import Dataset
from data_pipelines.errors import UserError
from models.weights import Weights
from recsys.config.experiment import ExperimentConfig
from recsys.exporting.export import export_run, shrink, verify_artifact
from recsys.runs.checkpoints import load_weights, read_tensors
from recsys.training.faults import InterruptedTrainingError
from recsys.training.train import train

Configure = Callable[..., ExperimentConfig]
MLP = {"interaction": {"kind": "cross", "layers": 2}, "tower": {"kind": "mlp", "hidden": [32, 16]}}
FAST_PEP = {"initial": -7.0, "speed": 100.0, "every": 5, "pressure": 1.0}

LEVERS: dict[str, dict[str, Any]] = {
    "row_pruning": {"sparsity": {"row_pruning": {"sparsity": 0.6, "every": 5}}},
    "row_pruning by distance": {"sparsity": {"row_pruning": {"sparsity": 0.6, "every": 5, "by": "distance"}}},
    "unit_pruning": {"sparsity": {"unit_pruning": {"sparsity": 0.5, "every": 5}}},
    "unit_pruning of a dense tower": {"sparsity": {"unit_pruning": {"sparsity": 0.5, "every": 5}}, "model": MLP},
    "weight_pruning": {"sparsity": {"weight_pruning": {"sparsity": 0.9, "every": 5}}},
    "dynamic_sparse": {"sparsity": {"dynamic_sparse": {"density": 0.2, "every": 10}}},
    "set": {"sparsity": {"dynamic_sparse": {"density": 0.2, "every": 10, "method": "set"}}},
    "fixed_mask": {"sparsity": {"fixed_mask": {"pattern": "local"}}},
    "dropconnect": {"sparsity": {"dropconnect": {"rate": 0.2}}},
    "k_winners": {"sparsity": {"k_winners": {"density": 0.25}}},
    "l1": {"sparsity": {"l1": {"dense": 1e-3, "tables": 1e-4, "every": 5}}},
    "group": {"sparsity": {"group": {"rows": 1e-4, "dims": 1e-3, "neurons": 2e-3, "experts": 1e-3, "every": 5}}},
    "pep": {"sparsity": {"pep": FAST_PEP | {"sparsity": 0.8}}},
    "pep by row": {"sparsity": {"pep": FAST_PEP | {"sparsity": 0.8, "granularity": "row"}}},
    "feature_gates": {"sparsity": {"feature_gates": {"strength": 0.05}}, "model": MLP},
    "feature_gates of a mixture": {"sparsity": {"feature_gates": {"strength": 0.05}}},
    "experts": {"sparsity": {"group": {"experts": 5e-2, "every": 5}}},
    "ftrl": {"sparsity": {"ftrl": {"alpha": 0.1, "l1": 0.05}}, "model": {"wide": True}},
    "all together": {
        "sparsity": {
            "feature_gates": {"strength": 0.05},
            "row_pruning": {"sparsity": 0.5, "every": 5},
            "unit_pruning": {"sparsity": 0.5, "every": 5},
            "group": {"dims": 1e-3, "every": 5},
            "weight_pruning": {"sparsity": 0.5},
        },
        "train": {"epochs": 3, "batch_size": 64, "ema": 0.9},
        "model": MLP,
    },
}


RunOf = Callable[[str], Path]


@pytest.fixture(scope="module")
def run_of(configure: Configure, dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> RunOf:
    """``run_of(name)``: the run of one of ``LEVERS``, trained once for all tests."""
    folder = tmp_path_factory.mktemp("runs")

    def run(name: str) -> Path:
        path = folder / name
        if not path.exists():
            train(configure(**LEVERS[name]), dataset, path)
        return path

    return run


@pytest.fixture
def trained(configure: Configure, dataset: Dataset, run_of: RunOf) -> Callable[[str], tuple[Weights, Weights]]:
    """``trained(name)``: the weights of a run as they are, and as they are exported."""

    def weights(name: str) -> tuple[Weights, Weights]:
        before = load_weights(run_of(name))
        return before, shrink(before, configure(**LEVERS[name]).sparsity, dataset)

    return weights


Trained = Callable[[str], tuple[Weights, Weights]]


@pytest.mark.parametrize("name", LEVERS)
def test_the_artifact_scores_as_the_run_does(name: str, run_of: RunOf, tmp_path: Path) -> None:
    artifact = export_run(run_of(name), tmp_path / "artifact")
    assert verify_artifact(artifact, run_of(name)).max_difference < 1e-5


@pytest.mark.parametrize("name", LEVERS)
def test_shrinking_changes_nothing_in_place(name: str, run_of: RunOf, configure: Configure, dataset: Dataset) -> None:
    weights, untouched = load_weights(run_of(name)), load_weights(run_of(name))
    shrink(weights, configure(**LEVERS[name]).sparsity, dataset)
    assert (weights.config, weights.schema) == (untouched.config, untouched.schema)
    for block in ("tables", "dense", "keep"):
        before, after = getattr(untouched, block), getattr(weights, block)
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before)
    assert (weights.factors, weights.bits, weights.steps, weights.grids) == ({}, {}, {}, {})


def test_row_pruning_drops_the_asked_share(trained: Trained) -> None:
    weights, _ = trained("row_pruning")
    for spec in weights.schema.tables:
        values = spec.rows - spec.reserved
        assert int((~weights.keep[spec.name]).sum()) == round(0.6 * values)


def test_unit_pruning_halves_every_expert(trained: Trained) -> None:
    weights, shrunk = trained("unit_pruning")
    assert weights.dense["tower.mixtures.0.experts.w1_EDH"].shape[2] == 16
    assert shrunk.dense["tower.mixtures.0.experts.w1_EDH"].shape[2] == 8
    assert shrunk.config.tower.hidden == 8


def test_unit_pruning_narrows_a_dense_tower(trained: Trained) -> None:
    _, shrunk = trained("unit_pruning of a dense tower")
    assert shrunk.config.tower.hidden == (16, 8)
    assert shrunk.dense["tower.layers.2.weight"].shape == (8, 16)


@pytest.mark.parametrize(("name", "density"), [("weight_pruning", 0.1), ("dynamic_sparse", 0.2), ("set", 0.2)])
def test_masked_weights_are_exactly_zero(name: str, density: float, trained: Trained) -> None:
    weights, _ = trained(name)
    masked = [weights.dense[f"tower.mixtures.0.experts.{part}"] for part in ("w1_EDH", "w2_EHD")]
    masked += [weights.dense[f"interaction.layers.{layer}.weight"] for layer in range(3)]
    alive = sum(int((tensor != 0).sum()) for tensor in masked) / sum(tensor.numel() for tensor in masked)
    assert alive == pytest.approx(density, abs=0.02)


def test_l1_leaves_exact_zeros_in_tables_and_matrices(trained: Trained) -> None:
    weights, _ = trained("l1")
    assert (weights.tables["item"] == 0).float().mean() > 0.3
    assert (weights.dense["interaction.layers.0.weight"] == 0).float().mean() > 0.1


def test_group_lasso_removes_rows_dimensions_and_units(trained: Trained) -> None:
    weights, shrunk = trained("group")
    assert not bool(weights.keep["item"].all())
    assert shrunk.tables["device"].shape[1] < 8
    assert shrunk.factors["device"].shape == (shrunk.tables["device"].shape[1], 8)


def test_a_dead_expert_leaves_the_stack_and_the_router(trained: Trained) -> None:
    weights, shrunk = trained("experts")
    alive = int(weights.dense["tower.mixtures.0.router.active_E"].sum())
    assert 2 <= alive < 4
    assert shrunk.config.tower.experts == alive
    assert shrunk.dense["tower.mixtures.0.router.weight"].shape[0] == alive


def test_pep_stops_near_the_asked_sparsity_and_leaves_no_parameters_of_its_own(trained: Trained) -> None:
    weights, _ = trained("pep")
    numbers = torch.cat([table.flatten() for table in weights.tables.values()])
    assert float((numbers == 0).float().mean()) > 0.75
    assert not any(name.startswith("pep") for name in weights.dense)


def test_ftrl_leaves_most_of_the_wide_part_at_zero_and_learns_the_rest(trained: Trained) -> None:
    weights, _ = trained("ftrl")
    wide = weights.tables["wide item"]
    assert 0 < int((wide != 0).sum()) < 0.5 * len(wide)


@pytest.mark.parametrize("name", ["pep", "group", "ftrl", "dynamic_sparse", "all together"])
def test_a_stopped_training_resumes_to_the_same_weights(
    name: str, run_of: RunOf, configure: Configure, dataset: Dataset, tmp_path: Path
) -> None:
    config = configure(**LEVERS[name])
    with pytest.raises(InterruptedTrainingError):
        train(config, dataset, tmp_path / "stopped", on_step=stop_after(2800))
    train(config, dataset, tmp_path / "stopped", resume=True)
    left, right = (read_tensors(run / "checkpoints" / "final", "") for run in (run_of(name), tmp_path / "stopped"))
    assert left.keys() == right.keys()
    for key in left:
        assert torch.equal(left[key], right[key]), key


def test_at_two_ranks_the_same_is_pruned_as_at_one(configure: Configure, dataset: Dataset, tmp_path: Path) -> None:
    levers = {
        "row_pruning": {"sparsity": 0.5, "every": 5},
        "unit_pruning": {"sparsity": 0.5, "every": 5},
        "group": {"dims": 1e-4, "every": 5},
        "pep": {"sparsity": 0.9, "pressure": 0.0, "tables": ["labels"]},
        "ftrl": {"alpha": 0.1, "l1": 1e-3},
    }
    ways = itertools.cycle(["row_wise", "column_wise"])
    tables = {table.name: {"sharding": next(ways)} for table in dataset.schema.tables}
    config = configure(sparsity=levers, model={"tables": tables, "wide": True})
    train(config, dataset, tmp_path / "one")
    half = config.model_copy(update={"train": config.train.model_copy(update={"batch_size": 32})})
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(half.model_dump(mode="json")))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "recsys"]
    arguments = ["train", str(tmp_path / "config.yaml"), str(dataset.path), str(tmp_path / "two"), "--json"]
    two = subprocess.run(
        [*command, *arguments], capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert two.returncode == 0, two.stderr
    assert json.loads(two.stdout.splitlines()[-1])["valid"]["auc"] > 0.5
    weights = [load_weights(tmp_path / run) for run in ("one", "two")]
    for name, mask in weights[0].keep.items():
        assert int(mask.sum()) == int(weights[1].keep[name].sum())
    artifact = export_run(tmp_path / "two", tmp_path / "artifact")
    assert verify_artifact(artifact, tmp_path / "two").max_difference < 1e-5


@pytest.mark.parametrize(
    ("blocks", "sentence"),
    [
        ({"sparsity": {"row_pruning": {"sparsity": 0.5, "tables": ["films"]}}}, "sparsity.row_pruning.tables"),
        ({"sparsity": {"group": {"rows": 0.1, "tables": ["films"]}}}, "sparsity.group.tables"),
        ({"sparsity": {"quantization": {"table_bits": {"films": 4}}}}, "sparsity.quantization.table_bits"),
        ({"sparsity": {"ftrl": {}}}, "model.wide"),
    ],
)
def test_levers_that_do_not_fit_are_refused_with_their_key(
    blocks: dict[str, Any], sentence: str, configure: Configure, dataset: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=sentence):
        train(configure(**blocks), dataset, tmp_path / "run")
    assert not (tmp_path / "run").exists()
