"""Whole trainings on a GPU: everything that keeps state of its own is where the kernels are, also after a resume."""

from pathlib import Path
from typing import Any

import pytest
import torch
from training_examples import assert_same, configure, final_tensors

from data_pipelines.dataset.dataset import Dataset, prepare
from recsys.evaluation.evaluate import evaluate
from recsys.training.faults import InterruptedTrainingError
from recsys.training.trainer import Trainer

MLP = {"dim": 8, "tower": {"kind": "mlp", "hidden": [16]}}
FAST_PEP = {"sparsity": 0.8, "initial": -7.0, "speed": 100.0, "every": 5, "pressure": 1.0}
SETTINGS: dict[str, dict[str, Any]] = {
    "mixture": {},
    "averaged weights": {"train__ema": 0.9},
    "unknown ids": {"train__unknown": {"user": 0.1}},
    "clipped": {"train__dense": {"optimizer": "adagrad", "clip_norm": 1.0}},
    "wide from a linear model": {"model": MLP | {"wide": True}, "train__start": "linear"},
    "adam for tables": {"train__tables": {"optimizer": "adam", "learning_rate": 0.01}},
    "lazy adam for tables": {"train__tables": {"optimizer": "lazy_adam", "learning_rate": 0.01}},
    "managed ids": {
        "model": MLP | {"tables": {"item": {"rows": 40}}},
        "data__features": {"item": {"kind": "hash", "rows": 5000}, "price": {"kind": "number"}},
    },
    "cached": {"model": MLP | {"tables": {"item": {"memory": "cached"}}}},
    "host": {"model": MLP | {"tables": {"item": {"memory": "host"}}}},
    "l1": {"sparsity": {"l1": {"dense": 1e-3, "tables": 1e-4, "every": 5}}},
    "group": {"sparsity": {"group": {"rows": 1e-4, "dims": 1e-3, "neurons": 2e-3, "experts": 1e-3, "every": 5}}},
    "row pruning": {"sparsity": {"row_pruning": {"sparsity": 0.6, "every": 5}}},
    "unit pruning": {"sparsity": {"unit_pruning": {"sparsity": 0.5, "every": 5}}},
    "weight pruning": {"sparsity": {"weight_pruning": {"sparsity": 0.9, "every": 5}}},
    "dynamic sparse": {"sparsity": {"dynamic_sparse": {"density": 0.2, "every": 10}}},
    "pep by row": {"sparsity": {"pep": FAST_PEP | {"granularity": "row"}}},
    "feature gates": {"sparsity": {"feature_gates": {"strength": 0.05}}},
    "k-winners": {"sparsity": {"k_winners": {"density": 0.25}}},
    "ftrl": {"sparsity": {"ftrl": {"alpha": 0.1, "l1": 0.05}}, "model": MLP | {"wide": True}},
    "aware of int8": {"sparsity": {"quantization": {"table_bits": 8, "dense": "int8", "aware": True}}, "model": MLP},
}


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("name", SETTINGS)
def test_a_stopped_training_ends_with_the_weights_of_one_that_was_not(
    experiment: dict[str, Any], tmp_path: Path, device: str, name: str
) -> None:
    config = configure(experiment, train__device=device, train__epochs=2, **SETTINGS[name])
    if device == "cpu" and name != "managed ids":
        pytest.skip("other tests train this on the CPU")
    dataset: Dataset = prepare(config.data, tmp_path / "dataset")
    with Trainer(config, dataset, tmp_path / "whole") as trainer:
        result = trainer.fit()
        assert {tensor.device.type for tensor in trainer.state.ranker.dense_state().values()} == {device}
    with Trainer(config, dataset, tmp_path / "stopped") as trainer:
        trainer.on_step = lambda rows, note: setattr(trainer.processes, "stop_requested", True)
        with pytest.raises(InterruptedTrainingError):
            trainer.fit()
    with Trainer(config, dataset, tmp_path / "stopped") as trainer:
        trainer.fit(resume=True)
    assert_same(final_tensors(tmp_path / "whole"), final_tensors(tmp_path / "stopped"))
    assert result.valid is not None
    on_cpu, there = (evaluate(tmp_path / "whole", dataset, "valid", draws=0, device=where) for where in ("cpu", device))
    assert there.tasks["click"]["auc"] == pytest.approx(on_cpu.tasks["click"]["auc"], abs=1e-3)
    assert torch.get_float32_matmul_precision() == "highest"
