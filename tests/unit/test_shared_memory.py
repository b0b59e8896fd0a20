"""Only what nobody uses any more is removed from shared memory."""

import fcntl
import os
import time
from pathlib import Path

import pytest

from nora_bringup import shared_memory
from nora_bringup.shared_memory import MIN_AGE_S, remove_abandoned


def segment(folder: Path, digits: str, size: int = 100) -> list[Path]:
    paths = [folder / f"fastrtps_{digits}", folder / f"fastrtps_{digits}_el"]
    paths[0].write_bytes(bytes(size))
    paths[1].write_bytes(b"")
    return paths


@pytest.fixture(autouse=True)
def later(monkeypatch):
    """Files that were made just now are old enough."""
    now_s = time.time
    monkeypatch.setattr(shared_memory.time, "time", lambda: now_s() + MIN_AGE_S + 1.0)


def test_only_segments_without_a_living_owner_go(tmp_path):
    dead = segment(tmp_path, "0123456789abcdef")
    living = segment(tmp_path, "fedcba9876543210")
    others = [*segment(tmp_path, "port7411"), tmp_path / "sem.fastrtps_port7411_mutex"]
    others[-1].write_bytes(b"")
    (tmp_path / "somebody_elses_el").write_bytes(b"")
    with living[1].open() as owner:
        fcntl.flock(owner, fcntl.LOCK_EX)
        assert remove_abandoned(tmp_path) == 100
        assert not any(path.exists() for path in dead)
        assert all(path.exists() for path in [*living, *others])
    assert (tmp_path / "somebody_elses_el").exists()


def test_a_new_segment_is_not_yet_abandoned(tmp_path, monkeypatch):
    monkeypatch.undo()
    new = segment(tmp_path, "0123456789abcdef")
    assert remove_abandoned(tmp_path) == 0
    assert all(path.exists() for path in new)


def test_other_users_keep_theirs(tmp_path, monkeypatch):
    theirs = segment(tmp_path, "0123456789abcdef")
    monkeypatch.setattr(os, "geteuid", lambda: theirs[0].stat().st_uid + 1)
    assert remove_abandoned(tmp_path) == 0
    assert all(path.exists() for path in theirs)


def test_a_machine_without_shared_memory(tmp_path):
    assert remove_abandoned(tmp_path / "none") == 0
