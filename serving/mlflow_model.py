"""An artifact as a model of MLflow (the flavour ``python_function``), without pickles.

MLflow keeps the artifact as it is and the name of this module, whose :func:`_load_pyfunc` it calls to load it.
"""

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from data_pipelines.disk.storage import new_directory
from data_pipelines.errors import UserError
from data_pipelines.features.kinds.number import NumberFeature
from data_pipelines.runtime import no_telemetry
from serving.artifact.artifact import Artifact
from serving.batch.scorer import Scorer

if TYPE_CHECKING:
    import pandas as pd

_PACKAGE = "sparse-recsys"
_TIME = "2030-01-01T00:00:00"


def mlflow_model(artifact: Artifact) -> dict[str, Any]:
    """What ``mlflow.pyfunc.log_model`` and ``save_model`` need to keep an artifact as a model.

    The model takes raw rows and gives the keys of each row and a column per task, as :class:`rs.Scorer` does. Its
    signature names the columns that features read, of any type: values are read as training read them. The input
    example is one row of the most frequent values. MLflow loads it where ``sparse-recsys`` is installed.

    Args:
        artifact: What ``rs.export`` wrote.

    Raises:
        UserError: MLflow or pandas is not installed.

    Example:
        >>> sorted(rs.mlflow_model(rs.Artifact.open(Path("artifact"))))
        ['data_path', 'input_example', 'loader_module', 'metadata', 'pip_requirements', 'signature']
    """
    no_telemetry()
    try:
        import mlflow.models
        import mlflow.types.schema
        import pandas as pd
    except ModuleNotFoundError as error:
        raise UserError(f"A model of MLflow needs {error.name}: pip install 'sparse-recsys[tracking]'.") from None
    types: Any = mlflow.types.schema
    example = example_row(artifact)
    plan = artifact.encoder.served
    optional = plan.row_columns - {name for feature in plan.features.values() for name in feature.columns()}
    inputs = [types.ColSpec(types.AnyType(), name, required=name not in optional) for name in example]
    outputs = [types.ColSpec("float", name) for name in artifact.outputs.names]
    return {
        "loader_module": __name__,
        "data_path": str(artifact.path),
        "signature": mlflow.models.ModelSignature(inputs=types.Schema(inputs), outputs=types.Schema(outputs)),
        "input_example": pd.DataFrame([example]),
        "pip_requirements": [f"{_PACKAGE}=={version(_PACKAGE)}", "pandas"],
        "metadata": {"name": artifact.card.name, "fingerprint": artifact.fingerprint},
    }


def write_mlflow(artifact: Artifact, out: Path, *, replace: bool = False) -> None:
    """Write ``artifact`` as a folder that ``mlflow.pyfunc.load_model`` reads.

    Raises:
        UserError: As :func:`mlflow_model` does; or ``out`` exists and ``replace`` is false.
    """
    arguments = mlflow_model(artifact)
    import mlflow.pyfunc

    with new_directory(out, "mlflow", meta={"artifact": artifact.fingerprint}, replace=replace) as folder:
        mlflow.pyfunc.save_model(str(folder), **arguments)


def example_row(artifact: Artifact) -> dict[str, Any]:
    """A raw row with every column that the artifact reads: the most frequent value of each id, the number 1."""
    plan = artifact.encoder.served
    found: dict[str, Any] = dict.fromkeys(sorted(plan.row_columns))
    if plan.time in found and plan.config.time_format in (None, "iso"):
        found[plan.time] = _TIME
    tables = {spec.name: spec.table for spec in artifact.encoder.schema.sparse}
    for name, feature in plan.features.items():
        column = getattr(feature.config, "column", None)
        if column not in found or found[column] is not None:
            continue
        if isinstance(feature, NumberFeature):
            found[column] = 1.0
        elif name in tables:
            found[column] = artifact.encoder.vocabulary(tables[name])["value"].first()
    return found


class MlflowModel:
    """What MLflow calls to score.

    Args:
        artifact: The folder of the artifact in a model of MLflow.
    """

    def __init__(self, artifact: Path) -> None:
        self._scorer = Scorer(Artifact.open(artifact))

    def predict(self, model_input: "pd.DataFrame", params: Mapping[str, Any] | None = None) -> "pd.DataFrame":
        """Keys and predictions of raw rows, in their order.

        Args:
            model_input: Rows with the columns of the signature.
            params: Not used; a part of MLflow's interface.
        """
        return self._scorer.score(pl.from_pandas(model_input, include_index=False)).to_pandas()


def _load_pyfunc(path: str) -> MlflowModel:
    return MlflowModel(Path(path))
