"""An artifact with a later past: the same model, for the days on which no new one is served."""

import shutil
from pathlib import Path

from data_pipelines.disk.file_names import below
from data_pipelines.disk.storage import new_directory
from data_pipelines.errors import UserError
from data_pipelines.past.state import State
from serving.artifact.artifact import STATE, Artifact


def with_state(artifact: Artifact, state: Path, out: Path) -> Artifact:
    """Write a copy of ``artifact`` at ``out`` whose histories and statistics start from another state.

    Args:
        artifact: An artifact that has a state.
        state: The folder of a state of the same features, such as that of a data set that extends the artifact's.
        out: Where the copy is written, complete or not at all.

    Raises:
        UserError: The artifact reads no past, the state keeps other features, or ``out`` exists or cannot be written.
    """
    if artifact.state is None:
        raise UserError(f"{artifact.path} has no state, because none of its features depends on the past.")
    State.open(state)  # in full: past_in compares sizes only
    artifact.past_in(state)
    with new_directory(out, "artifact", meta=artifact.manifest.meta) as folder:
        for name in artifact.manifest.files:
            if not name.startswith(f"{STATE}/"):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(below(artifact.path, name), folder / name)
        shutil.copytree(state, folder / STATE)
    return Artifact.open(out)
