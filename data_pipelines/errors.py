"""Exceptions for errors that the user can fix, and the warning that the command prints."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data_pipelines.redaction import conceal


class UserError(ValueError):
    """The user's input or configuration is at fault.

    The message is one clear sentence that names the file, the column or key, and the value, and says what to do.
    The ``recsys`` command prints it on standard error and exits with code 2; anything else that escapes exits with 1.
    Credentials in it are replaced (:func:`data_pipelines.redaction.conceal`): it may be logged, stored and shown.

    Example:
        >>> try:
        ...     rs.load_config("nowhere.yaml")
        ... except rs.UserError as error:
        ...     print(error)
        nowhere.yaml cannot be read (No such file or directory): give the path of a config.
    """

    def __init__(self, message: str) -> None:
        super().__init__(conceal(message))


class Notice(UserWarning):
    """A warning that the user should read although the work continues. The command prints it on standard error."""


class UnavailableError(UserError):
    """The request is valid, but a disk, a database or an artifact that it needs cannot be used now.

    The service answers it with 503, any other :class:`UserError` with 422.
    """


_DISK_FAULTS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
# Rust writes "(os error 28)", Arrow "[errno 28]", and SQLite words of its own.
_CODE = re.compile(r"(?:os error|errno) (\d+)", re.IGNORECASE)
_WORDS = {
    "database or disk is full": errno.ENOSPC,
    "attempt to write a readonly database": errno.EROFS,
    os.strerror(errno.ENOSPC): errno.ENOSPC,
    os.strerror(errno.EFBIG): errno.EFBIG,
    os.strerror(errno.EDQUOT): errno.EDQUOT,
    os.strerror(errno.EROFS): errno.EROFS,
}


def disk_fault(error: BaseException | None) -> str | None:
    """Why a disk cannot be written (full, over quota or read-only), if ``error`` or one of its causes says so.

    Libraries hide the system's error in exceptions of their own, such as Polars' ``ComputeError``.
    """
    while error is not None:
        text = str(error)
        codes = [*map(int, _CODE.findall(text)), *(code for words, code in _WORDS.items() if words in text)]
        if isinstance(error, OSError) and error.errno is not None:
            codes.insert(0, error.errno)
        for code in codes:
            if code in _DISK_FAULTS:
                return os.strerror(code)
        error = error.__cause__ if error.__suppress_context__ else error.__context__
    return None


@contextmanager
def writing(path: Path | str) -> Iterator[None]:
    """Turn the error of a disk that is full, over quota or read-only into one sentence that names ``path``.

    Raises:
        UnavailableError: The block failed because of that.
    """
    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        reason = disk_fault(error)
        if reason is None:
            raise
        raise UnavailableError(
            f"{path} cannot be written ({reason}): free some space on its disk, or name a folder on another disk."
        ) from error
