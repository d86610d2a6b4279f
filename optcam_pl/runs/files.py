"""Crash-safe file writes, and the lock of a run folder."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import sys
import time
import uuid
import warnings
from pathlib import Path

from optcam_pl.checks import ToldError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

sync_data = getattr(os, "fdatasync", os.fsync)  # the content and length of a file, without its times
NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | getattr(os, "O_BINARY", 0)


class RunFolderError(ToldError):
    """A run folder cannot be written, or its contents contradict each other; the message names the file."""


def write_all(fd: int, data: bytes) -> None:
    """Write all bytes to an open file; a single system call may write only a part of them."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable, on systems on which folders can be opened."""
    with contextlib.suppress(PermissionError):
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def write_file(path: str | os.PathLike[str], data: bytes | str) -> None:
    """Write a file atomically: at any moment its name leads to the old or the new content, never to a part.

    Args:
        path: The file; its folder is created if it is missing.
        data: The content; text is written as UTF-8.

    Raises:
        RunFolderError: If the file cannot be written; an old file is then unchanged.
    """
    path = Path(path)
    data = data.encode("utf-8", "backslashreplace") if isinstance(data, str) else data
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(temporary, NEW_FILE, 0o666)
        try:
            write_all(fd, data)
            os.fsync(fd)
        finally:
            os.close(fd)
        temporary.replace(path)
        sync_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            folder = next((above for above in path.parents if above.is_file()), None)
            reason = f"{folder} is a file" if folder else error.strerror
            raise RunFolderError(f"Cannot write {path}: {reason}.") from error
        raise


_held: set[int] = set()


def _drop_held() -> None:
    """Release the parent's locks in a forked child (a data worker); otherwise they would outlive the parent."""
    for fd in _held:
        os.close(fd)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_drop_held)


def _try_lock(fd: int, shared: bool = False) -> None:
    """Lock an open file, or raise OSError. The system releases the lock when the process ends for any reason."""
    if sys.platform == "win32":
        os.lseek(fd, 1 << 30, os.SEEK_SET)  # a byte after the text, so that others can still read the text
        msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
    else:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)


class RunLock:
    """Keeps other processes out of a run folder while this one writes. A crash does not leave the lock behind.

    This is a context manager on `RUN/.lock` (flock; on Windows a locked byte). The file remains and contains the last
    holder's process id, host and time, but only the kernel's lock counts. On a file system without locks, entering
    warns and succeeds.

    Args:
        run_dir: The run's folder; it is created if it is missing.
        name: Name of the file, for parts of a run that work at the same time (the shards of a job array).
        shared: Admit other processes that also ask for a shared lock (on Windows, none).
        wait: Seconds to wait for another process to release it.

    Raises:
        RunFolderError: If another process holds the lock (the message names it and its host), or the folder cannot be
            written.
    """

    def __init__(
        self, run_dir: str | os.PathLike[str], name: str = ".lock", *, shared: bool = False, wait: float = 0
    ) -> None:
        self.path, self.shared, self.wait = Path(run_dir) / name, shared, wait
        self._fd: int | None = None

    def __enter__(self) -> RunLock:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise RunFolderError(f"Cannot write {self.path}: {error.strerror}.") from error
        try:
            self._take(fd)
            os.ftruncate(fd, 0)
            os.lseek(fd, 0, os.SEEK_SET)
            holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
            write_all(fd, json.dumps(holder).encode())
        except BaseException as error:
            os.close(fd)
            if isinstance(error, OSError):
                raise RunFolderError(f"Cannot write {self.path}: {error.strerror}.") from error
            raise
        self._fd = fd
        _held.add(fd)
        return self

    def _take(self, fd: int) -> None:
        patience = time.monotonic() + self.wait
        try:
            while True:
                try:
                    return _try_lock(fd, self.shared)
                except BlockingIOError:
                    if time.monotonic() >= patience:
                        raise
                    time.sleep(0.05)
        except OSError as error:
            if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP):
                warnings.warn(f"No lock for {self.path.parent}: its file system has none.", stacklevel=3)
                return None
            if error.errno not in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
                raise
            os.lseek(fd, 0, os.SEEK_SET)
            try:
                holder = "process {pid} on {host} since {since}".format_map(json.loads(os.read(fd, 4096)))
            except (ValueError, KeyError, TypeError):
                holder = "another process"
            raise RunFolderError(f"The run folder {self.path.parent} is in use by {holder}.") from error

    def __exit__(self, *_: object) -> None:
        fd, self._fd = self._fd, None
        if fd in _held:  # not in a forked child
            _held.discard(fd)
            os.close(fd)


def probe_folder(folder: str | os.PathLike[str]) -> None:
    """Create a folder and check that files can be written into it, before hours of work.

    Raises:
        RunFolderError: If files cannot be written; the message names the folder and the reason.
    """
    path = Path(folder) / f".probe-{uuid.uuid4().hex}"
    try:
        write_file(path, b"\0" * 4096)
    except RunFolderError as error:
        cause = error.__cause__
        reason = (isinstance(cause, OSError) and cause.strerror) or cause or error
        reason = "it is a file" if Path(folder).is_file() else reason
        raise RunFolderError(f"Cannot write into the folder {folder}: {reason}. Give another `run_dir`.") from error
    with contextlib.suppress(OSError):
        path.unlink()
