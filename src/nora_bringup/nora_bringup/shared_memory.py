"""Shared memory that killed nodes left behind: removed when the next graph starts.

Fast DDS keeps the data of a participant in a file `fastrtps_<16 hexadecimal digits>` of /dev/shm,
up to 17 MB, and holds a lock on the file of the same name with `_el` while the participant's
process lives. After SIGKILL both files stay for good.
"""

from __future__ import annotations

import fcntl
import os
import re
import time
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")
LOCK = re.compile(r"fastrtps_[0-9a-f]{16}_el")
# A process creates its lock file a moment before it takes the lock.
MIN_AGE_S = 10.0


def remove_abandoned(folder: Path = SHARED_MEMORY) -> int:
    """Remove the segments of dead processes of this user; the number of bytes freed.

    Segments of other users, and of every process that lives, are left alone. So are the small
    files of ports, which Fast DDS itself uses again.
    """
    if not folder.is_dir():
        return 0
    return sum(_remove_if_abandoned(p) for p in folder.iterdir() if LOCK.fullmatch(p.name))


def _remove_if_abandoned(lock: Path) -> int:
    segment = lock.with_name(lock.name.removesuffix("_el"))
    try:
        facts = lock.stat()
        if facts.st_uid != os.geteuid() or time.time() - facts.st_ctime < MIN_AGE_S:
            return 0
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            size = segment.stat().st_size if segment.exists() else 0
            segment.unlink(missing_ok=True)
            lock.unlink()
            return size
    except (BlockingIOError, FileNotFoundError):
        return 0  # its process lives, or somebody else removed it meanwhile
