"""Files that come with the suite and are known by name: embodiments, protocols, checkpoints.

They belong to `nora_bringup`, which need not be installed: then only paths can be given.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path


def share() -> Path:
    """Folder of `config/` and `checkpoints/`: in the source tree, a ROS prefix or a Python prefix.

    Raises:
        FileNotFoundError: `nora_bringup` is not installed.
    """
    source = Path(__file__).resolve().parents[2] / "nora_bringup"
    prefixes = [*filter(None, os.environ.get("AMENT_PREFIX_PATH", "").split(":")), sys.prefix]
    folders = [source, *(Path(prefix, "share/nora_bringup") for prefix in prefixes)]
    for folder in folders:
        if (folder / "config").is_dir():
            return folder
    raise FileNotFoundError(
        "names of embodiments, protocols and policies need the package nora_bringup, which is not "
        "installed here: give the path of a file"
    )


def embodiment_file(name: str) -> Path:
    """Path of an embodiment given by name or by path (anything that ends in .yaml)."""
    if name.endswith(".yaml"):
        return Path(name).resolve()
    return share() / "config/embodiments" / f"{name}.yaml"


def protocol_file(name: str) -> Path:
    """Path of a trial protocol given by name or by path (anything that ends in .yaml)."""
    return Path(name) if name.endswith(".yaml") else share() / "config/trials" / f"{name}.yaml"


def shipped_checkpoint(embodiment: str) -> Path:
    """The policy that comes with the suite for an embodiment.

    Raises:
        FileNotFoundError: there is none.
    """
    folder = share() / "checkpoints" / embodiment
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder}: no policy for {embodiment}; `make demo-policy` makes one"
        )
    return folder
