"""Files that are whole at every instant, also after a crash, a kill or a power cut."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from hashlib import sha256
from pathlib import Path

from rst.experiments.errors import InputError


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace the file by the content in one step: a reader finds the old content or the new one, never a part.

    Raises:
        InputError: the file cannot be written, as on a full or a read-only disk.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with writing(path):
        try:
            with temporary.open("wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)


def file_digest(path: str) -> str:
    """SHA-256 (64 hexadecimal digits) of the content of a file; a file that has not changed is read once.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        state = os.stat(path)
        return _digest(path, state.st_mtime_ns, state.st_size)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path} cannot be read ({reason}): write the path of a file.") from error


@cache
def _digest(path: str, mtime_ns: int, size: int) -> str:
    digest = sha256()
    with open(path, "rb") as file:
        while part := file.read(1 << 24):
            digest.update(part)
    return digest.hexdigest()


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError of the body, which writes ``path``, into an `InputError` that names the file."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}.") from error


LOCK_ERRORS = (OSError, NotImplementedError)
"""What taking a lock may raise besides `filelock.Timeout`; the latter is how filelock says that there are no locks."""


def lacks_locks(error: Exception) -> bool:
    """Whether the error of a lock says that its file system has no locks, as some network file systems have none."""
    codes = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}
    return isinstance(error, NotImplementedError) or (isinstance(error, OSError) and error.errno in codes)


def sync_folder(folder: Path) -> None:
    """Wait until the renames in a folder are on the disk, so that they outlast a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
