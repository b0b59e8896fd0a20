"""The `settings.json` of a run: the options it was started with, and SHA-256 of its inputs.

The hashes reveal a data set or checkpoint that was replaced under the same path. They cover whole
files: that takes seconds for 8 GB, as loading them does, and a part of a file might be exactly the
part that adapters have not trained.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from nora_core.files import write_json
from nora_policy.checkpoints import checkpoint, files
from nora_training.data import dataset
from nora_training.sft.settings import Settings
from nora_training.train.parallel import is_first

SETTINGS, INPUTS = "settings.json", "inputs"

logger = logging.getLogger(__name__)


def write(settings: Settings) -> None:
    """Write the settings atomically."""
    settings.out.mkdir(parents=True, exist_ok=True)
    write_json(settings.out / SETTINGS, {**settings.to_json(), INPUTS: _sums(settings)})


def check(settings: Settings) -> None:
    """Raise `ValueError` where the run in `settings.out` was started with something else."""
    path = settings.out / SETTINGS
    if not path.is_file():
        return
    before, now = read(path), settings.to_json()
    for name in settings.what_counts():
        if before.get(name) != now[name]:
            raise ValueError(
                f"{name}: {settings.out} was started with {before.get(name)!r}, got "
                f"{now[name]!r}; another run needs another --out"
            )
    if INPUTS in before:
        _check_inputs(settings, before[INPUTS])
    elif is_first():
        logger.warning(
            "%s: from an older version: the contents of its inputs are not compared", path
        )


def read(path: Path) -> dict[str, Any]:
    """A JSON object of a run's folder. Raises `ValueError` for a file that was cut off."""
    try:
        return files.read_json(path)
    except ValueError as error:
        raise ValueError(f"{error}; remove it and repeat the command with --resume") from error


def _check_inputs(settings: Settings, before: dict[str, dict[str, str]]) -> None:
    for name, sums in _sums(settings).items():
        changed = {file for file, _ in sums.items() ^ before[name].items()}
        if changed:
            raise ValueError(
                f"{name}: {sorted(changed)} of {getattr(settings, name)} changed since "
                f"{settings.out} was started: restore them, or choose another --out"
            )


def _sums(settings: Settings) -> dict[str, dict[str, str]]:
    """By option, then by file. Options without files are left out; training reports them."""
    patterns = {
        "dataset": (dataset.INDEX,),
        "init": (
            checkpoint.CONFIG,
            checkpoint.TOKENIZER,
            "*.safetensors",
            f"{checkpoint.FAST}/*.json",
        ),
        "fast": ("*.json",),
    }
    found: dict[str, dict[str, str]] = {}
    for name, wanted in patterns.items():
        folder: Path | None = getattr(settings, name)
        if folder is not None:
            paths = sorted(path for pattern in wanted for path in folder.glob(pattern))
            found[name] = {str(path.relative_to(folder)): files.sha256(path) for path in paths}
    return {name: sums for name, sums in found.items() if sums}
