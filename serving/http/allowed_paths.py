"""Which paths a client may name: those that lie below the configured folders once symlinks and ``..`` are resolved."""

from collections.abc import Sequence
from pathlib import Path

from data_pipelines.errors import UserError

_GLOB = frozenset("*?[")


class Roots:
    """The folders that jobs may read from and write to.

    Args:
        folders: At least one. Relative paths of clients start at the first.

    Raises:
        UserError: A folder is not there.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        for folder in folders:
            if not folder.is_dir():
                raise UserError(
                    f"--data-root {folder} is not a folder of this machine, and jobs of a service read and write "
                    "nothing else: make it, mount it, or name another."
                )
        self.folders = tuple(folder.resolve() for folder in folders)

    def source(self, path: str) -> str:
        """An input, file, folder or glob, as an absolute path.

        Raises:
            UserError: It is not below a root.
        """
        parts = Path(path).parts
        fixed = next((i for i, part in enumerate(parts) if _GLOB & set(part)), len(parts))
        return str(self._below(Path(*parts[:fixed]), path).joinpath(*parts[fixed:]))

    def output(self, path: str) -> Path:
        """An output as an absolute path.

        Raises:
            UserError: It is not below a root, or is a root.
        """
        found = self._below(Path(path), path)
        if found in self.folders:
            raise UserError(f"output {path!r} is a data root itself: name a folder inside it.")
        return found

    def check(self, files: Sequence[str]) -> None:
        """Refuse files that a glob or folder reached through a symlink that leads out.

        Raises:
            UserError: One is not below a root.
        """
        for file in files:
            self._below(Path(file), file)

    def _below(self, path: Path, named: str) -> Path:
        if "://" in named or "\0" in named:
            raise UserError(f"{named!r} is not a path below a data root.")
        try:
            resolved = (self.folders[0] / path).resolve()
        except (OSError, RuntimeError, ValueError):
            raise UserError(f"{named!r} is not a path below a data root.") from None
        if not any(resolved.is_relative_to(folder) for folder in self.folders):
            raise UserError(f"{named!r} is not below a data root.")
        return resolved
