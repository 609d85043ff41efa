"""Scoring by tasks on a Ray cluster: each worker process maps the artifact once, and the driver keeps the journal.

A task that dies with its process or its node runs again elsewhere. A part's scores do not depend on who computes them,
and only the driver writes, so every part is written once.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path

from data_pipelines import extensions
from data_pipelines.errors import UserError
from data_pipelines.runtime import tune_process
from recsys.cluster.connection import processors, ray_cluster
from serving.artifact.artifact import Artifact
from serving.batch.inputs import Part
from serving.batch.options import JobOptions
from serving.batch.scorer import Scorer
from serving.batch.workers import Engine, Scored, Workers, score_part


def ray_engine(address: str | None = None) -> Engine:
    """The engine of :func:`serving.batch.batch_job.run_job` that scores on the Ray cluster at ``address``.

    The artifact must be at the same path on every node.
    """
    return partial(_workers, address)


@contextmanager
def _workers(address: str | None, artifact: Artifact, options: JobOptions, state: Path | None) -> Iterator[Workers]:
    with ray_cluster(address) as ray:
        task = ray.remote(num_cpus=1, max_retries=-1)(_score)
        path, made = artifact.path.resolve(), artifact.fingerprint

        def score(part: Part) -> Scored:
            scored: Scored | str = ray.get(task.remote(extensions.loaded(), path, made, options, state, part))
            if isinstance(scored, str):
                raise UserError(scored)
            return scored

        yield Workers(score, processors(ray))


def _score(
    modules: Sequence[str], artifact: Path, fingerprint: str, options: JobOptions, state: Path | None, part: Part
) -> Scored | str:
    """Runs on a worker of the cluster. Errors that the user can fix are returned as their messages."""
    try:
        extensions.load(modules)
        return score_part(_scorer(artifact, fingerprint, state), options, part)
    except UserError as error:
        return f"on a node of the cluster, {error}"


@lru_cache(maxsize=1)
def _scorer(artifact: Path, fingerprint: str, state: Path | None) -> Scorer:
    import torch

    tune_process()
    torch.set_num_threads(1)
    opened = Artifact.open(artifact, verify="full")
    if opened.fingerprint != fingerprint:
        raise UserError(f"{artifact} is not the driver's artifact: give all nodes the same one.")
    return Scorer(opened, state=state)
