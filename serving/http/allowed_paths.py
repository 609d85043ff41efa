"""The paths that a service may read and write: below the configured folders, after resolving symlinks and ``..``."""

from collections.abc import Sequence
from glob import has_magic
from pathlib import Path
from urllib.parse import unquote, urlsplit

from data_pipelines.errors import UserError
from data_pipelines.files.find import of_folder
from data_pipelines.locations import expand
from data_pipelines.redaction import redact
from serving.artifact.artifact import Artifact
from serving.http.walking import Walk


class Roots:
    """The folders that jobs may read from and write to, and that artifacts may read side tables from.

    Args:
        folders: At least one. Relative paths of clients are relative to the first.
        addresses: Addresses below which artifacts may read side tables too; none by default.

    Raises:
        UserError: A folder is not there, or an address cannot be used.
    """

    def __init__(self, folders: Sequence[Path], addresses: Sequence[str] = ()) -> None:
        for folder in folders:
            if not folder.is_dir():
                raise UserError(
                    f"--data-root {folder} is not a folder on this machine: create it, mount it, or name another."
                )
        for address in addresses:
            if _address_parts(address) is None or redact(address) != address:
                raise UserError(
                    f"--allow-address {address} cannot be used: give one such as s3://bucket/tables, without `..` and "
                    "without credentials, which come from the environment."
                )
        self.folders = tuple(folder.resolve() for folder in folders)
        self.addresses = tuple(addresses)

    def source(self, path: str) -> str:
        """An input (file, folder or glob) as an absolute path; :meth:`find` checks that it exists.

        Raises:
            UserError: It is not below a root, or has ``..`` after a wildcard.
        """
        fixed, pattern = _split(path)
        if ".." in pattern:
            raise UserError(f"{path!r} has `..` after a wildcard: name a folder below a data root without it.")
        return str(self._below(fixed, path).joinpath(*pattern))

    def output(self, path: str) -> Path:
        """An output as an absolute path.

        Raises:
            UserError: It is not below a root, is a root, or has wildcards, which readers would expand.
        """
        if has_magic(path):
            raise UserError(f"output {path!r} has a wildcard (*, ? or [): name a folder below a data root without it.")
        found = self._below(Path(path), path)
        if found in self.folders:
            raise UserError(f"output {path!r} is a data root itself: name a folder inside it.")
        return found

    def find(self, location: str) -> list[str]:
        """The files of a path, folder or glob below the roots, sorted; an allowed address as it is.

        Links to folders are followed only before the first wildcard, and a walk is bounded. A file outside the roots
        and a missing file are refused with the same message, so that a client does not learn which files exist outside.

        Raises:
            UserError: Nothing is there, a file of it is not below a root, or there is too much to look through.
        """
        if "://" in location:
            if not self._allows(location):
                raise _refused(location)
            return [location]
        path = Path(self.source(str(Path(location).absolute())))
        folder, pattern = _split(str(path))
        try:
            if path.is_file():
                found = [str(path)]  # a name may contain wildcard characters
            elif pattern:
                found = sorted(set(Walk().glob(folder, pattern)))
            else:
                found = list(Walk().below(path))
        except OSError:
            raise _refused(location) from None
        places = {file: self._resolved(file) for file in found}
        found = [file for file, place in places.items() if place is None or not place.is_dir()]
        if not all(map(_is_file, map(places.get, found))):
            raise _refused(location)
        if (path / "_delta_log").is_dir() and not all(map(_is_file, map(self._resolved, _delta_files(path)))):
            raise _refused(location)
        found = of_folder(found, path) if path.is_dir() else found
        if not found:
            raise _refused(location)
        return found

    def open(self, path: Path) -> Artifact:
        """An artifact, checked in full. :meth:`find` finds the files that it reads while it scores.

        Raises:
            UserError: :meth:`Artifact.open` refuses it, or one of its side tables is missing, not below a root, or at
                an address that is not allowed.
        """
        artifact = Artifact.open(path, verify="full", find=self.find)
        for table in [join.table for join in artifact.encoder.served.row_joins]:
            try:
                self.find(expand(table))
            except UserError:
                raise UserError(
                    f"{artifact.path} reads the side table {table}, which is not there, or not below a data root: a "
                    "service reads side tables below its --data-root folders, and at addresses that --allow-address "
                    "names."
                ) from None
        return artifact

    def _allows(self, address: str) -> bool:
        parts = _address_parts(address)
        prefixes = [_address_parts(allowed) for allowed in self.addresses]
        return parts is not None and any(parts[: len(prefix)] == prefix for prefix in prefixes if prefix is not None)

    def _resolved(self, file: str) -> Path | None:
        """Where a file is, once links are followed; ``None`` if it is not there or not below a root."""
        try:
            found = Path(file).resolve(strict=True)
        except (OSError, RuntimeError, ValueError):
            return None
        return found if any(found.is_relative_to(folder) for folder in self.folders) else None

    def _below(self, path: Path, named: str) -> Path:
        if "://" in named or "\0" in named:
            raise _refused(named)
        try:
            resolved = (self.folders[0] / path).resolve()
        except (OSError, RuntimeError, ValueError):
            raise _refused(named) from None
        if not any(resolved.is_relative_to(folder) for folder in self.folders):
            raise _refused(named)
        return resolved


def _is_file(place: Path | None) -> bool:
    return place is not None and place.is_file()


def _refused(named: str) -> UserError:
    return UserError(f"{named!r} is not there, or not below a data root.")


def _split(path: str) -> tuple[Path, tuple[str, ...]]:
    """The part of a path before its first wildcard, and the parts from there on."""
    parts = Path(path).parts
    fixed = next((at for at, part in enumerate(parts) if has_magic(part)), len(parts))
    return Path(*parts[:fixed]), parts[fixed:]


def _address_parts(address: str) -> tuple[str, ...] | None:
    """Scheme, host and folders of an address, for comparison part by part; ``None`` if it is not a plain address."""
    try:
        found = urlsplit(address)
    except ValueError:
        return None
    folders = [part for part in unquote(found.path).split("/") if part]
    if not found.scheme or not found.netloc or ".." in folders or "\\" in address or found.scheme == "file":
        return None
    return (found.scheme, found.netloc, *folders)


def _delta_files(table: Path) -> list[str]:
    """The files that a Delta table's log names, which may be elsewhere."""
    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaError

    try:
        uris = DeltaTable(str(table)).file_uris()
    except (DeltaError, ValueError) as error:
        raise UserError(f"{table} cannot be read as a Delta table: {' '.join(str(error).split())}") from None
    return [unquote(uri.removeprefix("file://")) for uri in uris]
