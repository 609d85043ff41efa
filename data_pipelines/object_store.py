"""Directories at object stores: sent with the manifest last, and fetched whole, because what is read is memory-mapped.

A directory is there when its manifest is. An upload that was interrupted leaves files, but nothing that opens.
Credentials and endpoints come from the environment (``AWS_ACCESS_KEY_ID``, ``AWS_ENDPOINT_URL`` and the like).
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data_pipelines.errors import UserError
from data_pipelines.storage import MANIFEST, Manifest, fingerprint, open_directory, sync


def is_address(location: str | Path) -> bool:
    """Whether ``location`` is an object-store address such as ``s3://bucket/name`` rather than a path."""
    return "://" in str(location)


def push(folder: Path, address: str, *, replace: bool = False) -> None:
    """Send the directory ``folder`` to ``address``.

    Raises:
        UserError: A directory is there already (unless ``replace``), ``folder`` is not complete, or the store refuses.
    """
    if not (folder / MANIFEST).is_file():
        raise UserError(f"{folder} has no {MANIFEST}: only complete directories are sent to {address}.")
    with _store(address) as (store, root):
        if store.exists(f"{root}/{MANIFEST}"):
            if not replace:
                raise UserError(f"{address} already exists: name another address, or remove it first.")
            store.rm_file(f"{root}/{MANIFEST}")
        if store.exists(root):
            store.rm(root, recursive=True)
        for file in sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST):
            store.put_file(str(file), f"{root}/{file.relative_to(folder).as_posix()}")
        store.put_file(str(folder / MANIFEST), f"{root}/{MANIFEST}")


def pull(address: str, folder: Path) -> None:
    """Fetch the directory at ``address`` to ``folder``, which is complete, checksums compared, or absent.

    Raises:
        UserError: There is no complete directory, or what arrives is damaged.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        manifest = _manifest(address)
        with _store(address) as (store, root):
            # Directories within (a state, a checkpoint) have manifests of their own, which the outer one does not list.
            inner = [name.removeprefix(f"{root}/") for name in store.find(root) if name.endswith(f"/{MANIFEST}")]
            for name in [*manifest.files, *inner]:
                (beside / name).parent.mkdir(parents=True, exist_ok=True)
                store.get_file(f"{root}/{name}", str(beside / name))
        open_directory(beside, manifest.kind)
        beside.chmod(0o755)
        os.replace(beside, folder)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    sync(folder.parent)


def fetched(location: str | Path) -> Path:
    """``location`` itself if it is a path; else a local copy of what is at the address, fetched once per content.

    Copies lie in the user's cache folder (``XDG_CACHE_HOME``, or ``~/.cache``) below ``recsys/``.

    Raises:
        UserError: There is no complete directory at the address, or what arrives is damaged.
    """
    if not is_address(location):
        return Path(location)
    address = str(location)
    copy = _cache(address) / _manifest(address).fingerprint
    if not copy.is_dir():
        pull(address, copy)
    return copy


@contextmanager
def sent(location: str | Path, *, resume: bool = False, replace: bool = False, send: bool = True) -> Iterator[Path]:
    """Yield a path to write a directory to: ``location`` itself, or one whose directory is then sent to the address.

    Args:
        resume: Go on with what an earlier attempt, killed before it was sent, left on this machine.
        replace: Put it in the place of what is at the address.
        send: False in all but one of several processes that write the directory together.

    Raises:
        UserError: Something is at the address already, or the store refuses.
    """
    if not is_address(location):
        yield Path(location)
        return
    address = str(location)
    with _store(address) as (store, root):
        if not replace and store.exists(f"{root}/{MANIFEST}"):
            raise UserError(f"{address} already exists: name another address, or remove it first.")
    local = _cache(address) / "to-send"
    if send and not resume:
        shutil.rmtree(local, ignore_errors=True)
    local.parent.mkdir(parents=True, exist_ok=True)
    yield local
    if send:
        push(local, address, replace=replace)
        shutil.rmtree(local)


def _cache(address: str) -> Path:
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "recsys" / fingerprint(address)


def _manifest(address: str) -> Manifest:
    with _store(address) as (store, root):
        try:
            return Manifest.model_validate_json(store.cat_file(f"{root}/{MANIFEST}"))
        except FileNotFoundError:
            raise UserError(f"{address} has no {MANIFEST}: nothing complete is there.") from None
        except ValueError:
            raise UserError(f"{address}/{MANIFEST} is damaged: send the directory again.") from None


@contextmanager
def _store(address: str) -> Iterator[tuple[Any, str]]:
    """The file system of ``address`` and the path in it; its errors as one sentence."""
    from fsspec.core import url_to_fs

    try:
        store, root = url_to_fs(address, use_listings_cache=False)
        yield store, root.rstrip("/")
    except ImportError:
        raise UserError(f"{address}: install what speaks to this store: pip install 'sparse-recsys[lake]'.") from None
    except OSError as error:
        raise UserError(f"{address} cannot be reached: {error}") from error
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{address} is no address of a known store: {error}") from None
