"""The folder of a run: made anew, or gone on with."""

from pathlib import Path
from typing import Any

from data_pipelines.batch import Schema
from data_pipelines.errors import UserError
from data_pipelines.storage import MANIFEST, open_directory, write_file
from recsys.checkpoints import CONFIG_FILE, SCHEMA_FILE, steps
from recsys.config import ExperimentConfig, load_config, to_yaml

MAY_CHANGE = ("checkpoint_every", "keep_checkpoints", "loader_threads", "mlflow")
"""Keys of ``train`` that leave the weights as they are: these, sharding and spread may change in a resume."""


def claim_run(run: Path, config: ExperimentConfig, schema: Schema, *, resume: bool) -> int | None:
    """The step of the last checkpoint of ``run``; ``None`` where there is none, and then its folder is made.

    Raises:
        UserError: ``run`` exists and is not to be resumed, is of another config, or cannot be written.
    """
    if run.exists() and not resume:
        raise UserError(f"{run} already exists: name another folder, or add --resume to go on with it.")
    if (run / CONFIG_FILE).exists():
        _compare_config(run, config)
        if found := steps(run):
            return found[-1]
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{run} cannot be written ({error.strerror}): name another folder.") from None
    write_file(run / SCHEMA_FILE, schema.model_dump_json(indent=1))
    write_file(run / CONFIG_FILE, to_yaml(config))
    return None


def finished_meta(run: Path, config: ExperimentConfig) -> dict[str, Any] | None:
    """What the manifest of ``run`` says, if it has finished: a restart may come when nothing is left to do.

    Raises:
        UserError: ``run`` is of another config.
    """
    if not (run / MANIFEST).exists():
        return None
    _compare_config(run, config)
    return open_directory(run, "run", verify="sizes").meta


def _compare_config(run: Path, config: ExperimentConfig) -> None:
    if _weighty(load_config(run / CONFIG_FILE)) != _weighty(config):
        raise UserError(
            f"{run / CONFIG_FILE} differs from the config given: resume with the config that the run was started "
            f"with (only train.{', train.'.join(MAY_CHANGE)}, sharding and spread may change)."
        )


def _weighty(config: ExperimentConfig) -> dict[str, Any]:
    """What of a config decides the weights, beside the data set (whose fingerprint is compared)."""
    content = config.model_dump(include={"seed", "model", "train", "sparsity"})
    for key in MAY_CHANGE:
        del content["train"][key]
    for table in content["model"]["tables"].values():
        del table["sharding"]
    content["model"]["tables"] = {
        name: table for name, table in content["model"]["tables"].items() if any(table.values())
    }
    content["model"]["tower"].pop("spread", None)
    return content
