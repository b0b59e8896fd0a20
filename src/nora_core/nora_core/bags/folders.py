"""Find bags in folders."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

STORAGES = (".mcap", ".db3")
COMPRESSED = tuple(f"{suffix}.zstd" for suffix in STORAGES)
METADATA = "metadata.yaml"


def find_bags(folders: Iterable[Path]) -> list[Path]:
    """Every folder, at any depth, that holds a bag or what is left of one, sorted.

    Hidden folders hold bags that are still being written and are left out. A folder without any
    bag stands for itself, so that whoever opens it says what is missing.

    Raises:
        FileNotFoundError: one of `folders` does not exist.
    """
    found: set[Path] = set()
    for folder in folders:
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder")
        bags = {
            path.parent
            for path in folder.rglob("*")
            if not any(part.startswith(".") for part in path.relative_to(folder).parts)
            and (path.name == METADATA or path.name.endswith((*STORAGES, *COMPRESSED)))
        }
        found |= bags or {folder}
    return sorted(found)
