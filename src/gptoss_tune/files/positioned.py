"""Reading and writing a file at an offset, on every system and from several threads.

Linux and macOS do so in one call that moves no position. Windows has no such call: there the
position is set and used by one thread at a time.
"""

from __future__ import annotations

import os
import threading

_LARGEST = 1 << 30
"""Bytes of one call; macOS refuses 2 GiB."""
_position = threading.Lock()


def read_at(descriptor: int, into: memoryview, offset: int) -> int:
    """Read from ``offset`` on, at most as much as ``into`` holds; return how many bytes came."""
    into = into[:_LARGEST]
    if hasattr(os, "preadv"):
        return os.preadv(descriptor, [into], offset)
    with _position, open(descriptor, "rb", buffering=0, closefd=False) as file:
        file.seek(offset)
        return file.readinto(into) or 0


def write_at(descriptor: int, data: memoryview, offset: int) -> None:
    """Write all of ``data`` at ``offset``."""
    done = 0
    while done < len(data):
        piece = data[done : done + _LARGEST]
        if hasattr(os, "pwrite"):
            done += os.pwrite(descriptor, piece, offset + done)
        else:
            with _position:
                os.lseek(descriptor, offset + done, os.SEEK_SET)
                done += os.write(descriptor, piece)
