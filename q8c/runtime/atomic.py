"""Files that appear under their name complete or not at all."""
from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO


@contextmanager
def replacing(path: str) -> Iterator[BinaryIO]:
    """An empty file, open for reading and writing, that takes `path`'s place when the block ends without an exception.

    Until then it has no name where the file system can do that, so that even a killed process leaves nothing behind,
    and else a hidden temporary one in the same folder. A link at `path` is followed; what is there and no regular file,
    such as a device, is never replaced. Raises OSError.
    """
    path = os.path.realpath(path)
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        raise OSError(errno.EINVAL, "there is something that is no regular file", path)
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, f".{name[:200]}.{os.urandom(6).hex()}.tmp")
    descriptor, nameless = _create(folder, temporary)
    try:
        with os.fdopen(descriptor, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if nameless:
                # Only with a folder's descriptor does os.link follow the link; an absolute path ignores which one.
                os.link(f"/proc/self/fd/{file.fileno()}", temporary, src_dir_fd=file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    _sync_folder(folder)


def _create(folder: str, temporary: str) -> tuple[int, bool]:
    """A descriptor of a new file with the permissions of the umask, and whether it is without a name."""
    if os.path.isdir("/proc/self/fd"):
        with suppress(OSError):
            return os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o666), True
    return os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o666), False


def _sync_folder(folder: str) -> None:
    """Make the new name durable, where folders can be synced."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
