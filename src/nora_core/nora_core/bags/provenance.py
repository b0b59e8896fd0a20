"""Where an episode comes from: which robot file, which checkpoint, which code."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

from nora_core.bags.label import Provenance

CARD = ("card.json", "config.json")


def provenance(embodiment_file: Path, embodiment: str, checkpoint: str) -> Provenance:
    """Provenance from a robot's file and, unless it is empty, a checkpoint folder.

    Raises:
        FileNotFoundError: one of them is not there.
    """
    digest = hashlib.sha256(embodiment_file.read_bytes()).hexdigest()
    return Provenance(
        embodiment=embodiment,
        embodiment_sha256=digest,
        checkpoint=checkpoint_id(checkpoint),
        git_revision=git_revision(),
    )


def checkpoint_id(checkpoint: str) -> str:
    """Folder name and the beginning of the SHA-256 of its card (or, without one, its config)."""
    if not checkpoint:
        return ""
    folder = Path(checkpoint)
    for name in CARD:
        if (folder / name).is_file():
            digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
            return f"{folder.name}@{digest[:12]}"
    raise FileNotFoundError(f"{folder}: expected one of {CARD}, found none")


def git_revision() -> str:
    """Commit of the source tree this runs from, `-dirty` if it was changed; or `unknown`."""
    source = Path(__file__).resolve().parent
    command = ["git", "-C", str(source), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        return "unknown"  # installed, not checked out
    return done.stdout.strip()
