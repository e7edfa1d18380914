"""File-system work to rely on: on disk when it returns, exclusive, explained when it fails."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from graftline.serving.errors import UserError
from graftline.serving.manifest import plain_files

_FULL = "Free space there, or set paths.serving to a disk that has more, then try again."
_UNWRITABLE = "Make it writable for this user, or set paths.serving to another folder."
_NOT_A_FOLDER = "Something else stands where a folder is needed: move it away."
_REMEDIES = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EROFS: _UNWRITABLE,
    errno.EACCES: _UNWRITABLE,
    errno.EPERM: _UNWRITABLE,
    errno.ENOTDIR: _NOT_A_FOLDER,
    errno.EEXIST: _NOT_A_FOLDER,
}


def copy_tree(source: Path, target: Path) -> None:
    """Copies the files under a folder into a new one, and syncs them.

    Access rights are those of new files, not the source's: a server often runs as another user
    than the trainer.

    Raises:
        UserError: the source holds a link, a device or anything else but files and folders.
    """
    target.mkdir()
    for name, path in plain_files(source):
        if path is None:
            raise UserError(
                f"{source / name} is neither a plain file nor a folder; a version must stand on "
                "its own. Put the file itself there."
            )
        copy = target / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
        sync(copy)
    for parent, _, _ in os.walk(target):
        sync(Path(parent))


def write(path: Path, content: bytes) -> None:
    """Writes and syncs one file."""
    path.write_bytes(content)
    sync(path)


def sync(path: Path) -> None:
    """Syncs a file's content, or a folder's entries: what was made in it or renamed into it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def move_all(steps: Sequence[tuple[Path, Path]]) -> None:
    """Renames children into other folders, in order; when one fails, those before it are undone.

    Args:
        steps: what is moved, and the folder it goes to.

    Raises:
        UserError: something of that name stands there already.
        OSError: it cannot be moved.
    """
    done = []
    try:
        for source, folder in steps:
            target = folder / source.name
            if os.path.lexists(target):
                raise UserError(f"{source} cannot be moved to {target}, which exists already.")
            source.rename(target)
            done.append((source, target))
        for folder in {path.parent for step in done for path in step}:
            sync(folder)
    except BaseException:
        for source, target in reversed(done):
            target.rename(source)
        raise


@contextlib.contextmanager
def locked(path: Path, timeout: float) -> Iterator[None]:
    """Holds a lock that the system releases when the process dies; makes its folder.

    Args:
        path: the lock's file, which stays.
        timeout: seconds to wait for whoever holds it.

    Raises:
        UserError: it is still held after that time.
    """
    import filelock  # takes as long to import as everything else that a command needs

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path, timeout=timeout)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise UserError(
            f"Another process has held {path} for more than {timeout:.0f} s. Wait for it to "
            "finish, or end it, then try again."
        ) from None
    try:
        yield
    finally:
        lock.release()


def is_held(path: Path) -> bool:
    """Whether a process holds the lock of this file; whoever may read it may ask."""
    try:
        probe = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(probe, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(probe)
    return False


@contextlib.contextmanager
def explained(failure: str) -> Iterator[None]:
    """Says what a person can do about a disk that is full or a folder that is not writable.

    Raises:
        UserError: in place of the OSError, `failure` first.
    """
    try:
        yield
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0)
        if remedy is None:
            raise
        where = f" ({error.filename})" if error.filename else ""
        raise UserError(f"{failure}: {error.strerror}{where}. {remedy}") from error


def link_or_copy(source: str, target: str) -> None:
    """Makes a second name for a file or, on another file system, a second file.

    As `copy_function` of `shutil.copytree` it makes a folder that can be removed without harm to
    the first one by whoever does it: TensorFlow's file system follows symbolic links and empties
    what they lead to.
    """
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, Path(target))
