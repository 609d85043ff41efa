"""A training as a run of MLflow. A note says when MLflow fails; the training continues without it."""

import os
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

from data_pipelines.errors import UserError
from data_pipelines.locations import expand
from data_pipelines.redaction import conceal, redacted
from data_pipelines.runtime import no_telemetry

EXPERIMENT = "recsys"
_LONGEST_NAME, _LONGEST_VALUE = 240, 6000
_ENVIRONMENT = {
    "MLFLOW_ALLOW_FILE_STORE": "true",  # since 3.17, MLflow refuses a folder without this
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # the URL with its password
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # training waits for the answer
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}


class MlflowRun:
    """A run of MLflow; after the first failure nothing more is sent.

    Args:
        uri: Tracking URI, a folder or a server, ``${NAME}`` read from the environment.
        name: Name of the run.
        parameters: The config, shown by MLflow.
        note: Called with one sentence when something cannot be sent.

    Raises:
        UserError: MLflow is not installed, or a variable of ``uri`` is not set.
    """

    def __init__(self, uri: str, name: str, parameters: Mapping[str, Any], note: Callable[[str], None]) -> None:
        no_telemetry()
        for variable, value in _ENVIRONMENT.items():
            os.environ.setdefault(variable, value)
        try:
            import mlflow
        except ModuleNotFoundError:
            raise UserError(
                "train.mlflow needs MLflow: pip install 'sparse-recsys[tracking]', or remove the key."
            ) from None
        self._uri, self._note, self._names = uri, note, Names()
        self._entities, self._client, self._run = mlflow.entities, None, ""
        address = expand(uri)
        self._send(lambda: self._start(mlflow.MlflowClient(address), name, parameters))

    def _start(self, client: Any, name: str, parameters: Mapping[str, Any]) -> None:
        experiment = client.get_experiment_by_name(EXPERIMENT)
        identity = client.create_experiment(EXPERIMENT) if experiment is None else experiment.experiment_id
        self._run = client.create_run(identity, run_name=name).info.run_id
        self._client = client
        names = Names()
        pairs = [(names(key), str(value)[:_LONGEST_VALUE]) for key, value in _flat(redacted(parameters))]
        client.log_batch(self._run, params=[self._entities.Param(key, value) for key, value in pairs])

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Send measurements made after ``step`` steps."""
        now = int(time.time() * 1000)
        found = [(self._names(name), float(value)) for name, value in values.items()]
        if (client := self._client) is not None:
            metrics = [self._entities.Metric(name, value, now, step) for name, value in found]
            self._send(lambda: client.log_batch(self._run, metrics=metrics))

    def end(self, status: str) -> None:
        """End the run as ``FINISHED`` or ``FAILED``."""
        if (client := self._client) is not None:
            self._send(lambda: client.set_terminated(self._run, status))

    def _send(self, request: Callable[[], object]) -> None:
        try:
            request()
        except Exception as error:  # a client raises whatever its libraries raise
            self._client = None
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            self._note(
                f"train.mlflow: {conceal(self._uri)} cannot be used ({conceal(reason)}). Training continues without "
                "it; metrics.parquet has every measurement."
            )


class Names:
    """Names as MLflow accepts them: letters, digits, ``_``, ``-``, ``.``, blanks, and ``/`` between parts.

    Everything else becomes ``_``. Two names that would become one are told apart by a number.

    Example:
        >>> names = Names()
        >>> names("valid/click>0/auc"), names("valid/click<0/auc")
        ('valid/click_0/auc', 'valid/click_0/auc_2')
    """

    def __init__(self) -> None:
        self._given: dict[str, str] = {}
        self._taken: set[str] = set()

    def __call__(self, name: str) -> str:
        if name not in self._given:
            parts = (re.sub(r"[^\w.\- ]", "_", part) for part in name.split("/"))
            clean = "/".join(part if part.strip(".") else "_" * max(len(part), 1) for part in parts)[:_LONGEST_NAME]
            unique, number = clean, 2
            while unique in self._taken:
                unique, number = f"{clean}_{number}", number + 1
            self._given[name] = unique
            self._taken.add(unique)
        return self._given[name]


def _flat(content: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for key, value in content.items():
        rows += _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [(prefix + key, value)]
    return rows
