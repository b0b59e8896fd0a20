"""Python environments that lack what some machine lacks, made in a moment out of this one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import venv
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[1]
OURS = ("nora_core", "nora_policy", "nora_bringup", "nora_training")


def locked(name: str) -> set[str]:
    """Names of the distributions in a file of `requirements/`."""
    text = (ROOT / "requirements" / name).read_text()
    return {match.replace("-", "_") for match in re.findall(r"^([a-z0-9._-]+)==", text, re.M)}


def make(folder: Path, without: set[str], packages: tuple[str, ...] = ()) -> dict[str, str]:
    """A virtual environment that has what this one has, less some distributions.

    Args:
        folder: where it is made; `folder/bin/python` is its interpreter.
        without: distributions to leave out, with all their modules.
        packages: those of `OURS` that are there as they are built in this workspace; if there are
            none, neither is ROS.

    Returns:
        The environment variables to run its interpreter with.
    """
    venv.create(folder, with_pip=False, symlinks=True)
    site = Path(next((folder / "lib").glob("python3*/site-packages")))
    hidden = {
        module
        for module, owners in metadata.packages_distributions().items()
        if {_normal(owner) for owner in owners} <= without
    }
    for path in map(Path, sys.path):
        if path.name in ("site-packages", "dist-packages"):
            for entry in path.iterdir():
                name = entry.name.split(".")[0].split("-")[0]
                link = site / entry.name
                is_hidden = name in hidden or _normal(name) in without
                if not (is_hidden or link.exists() or entry.suffix in (".egg-link", ".pth")):
                    link.symlink_to(entry)
    given = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    kept = [path for path in given if Path(path).name not in set(OURS) - set(packages)]
    gone = ("VIRTUAL_ENV", *(() if packages else ("AMENT_PREFIX_PATH", "LD_LIBRARY_PATH")))
    variables = {key: value for key, value in os.environ.items() if key not in gone}
    return {**variables, "PYTHONPATH": os.pathsep.join(kept) if packages else ""}


def _normal(distribution: str) -> str:
    return re.sub(r"[-.]+", "_", distribution.lower())


def run(python: Path, env: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the interpreter to its end."""
    command = [str(python), *arguments]
    return subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=False)
