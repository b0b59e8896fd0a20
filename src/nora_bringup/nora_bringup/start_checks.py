"""What can be checked about a start before any node runs: files, folders, the GPU."""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Iterator
from pathlib import Path

from nora_bringup.graph import Options, node_specs
from nora_core.embodiment import Embodiment
from nora_core.paths import embodiment_file

CONFIG, TOKENIZER = "config.json", "tokenizer.json"


def problems(options: Options) -> list[str]:
    """Everything that keeps a graph from starting, one line each.

    The files are not opened: whether a checkpoint fits the robot is for the policy node to say.
    """
    try:
        node_specs(options)
    except (ValueError, OSError) as error:
        return [str(error)]
    found = [*_embodiment_problems(options.embodiment)]
    if options.checkpoint:
        found += _checkpoint_problems(Path(options.checkpoint))
        if options.device == "cuda" and not has_gpu():
            found.append("device: cuda needs an NVIDIA GPU with its driver, and there is none")
    if options.record_dir:
        found += _folder_problems(Path(options.record_dir))
    return found


def require_startable(options: Options) -> None:
    """Raises `ValueError` with all problems in one line."""
    if found := problems(options):
        raise ValueError("; ".join(found))


def has_gpu() -> bool:
    """Whether the CUDA driver has a device; respects CUDA_VISIBLE_DEVICES."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    is_up = driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0
    return is_up and count.value > 0


def _embodiment_problems(name: str) -> Iterator[str]:
    path = embodiment_file(name)
    embodiment = Embodiment.load(path)
    for what in ("arm", "driver", "workspace"):
        if getattr(embodiment, what) is None:
            yield f"{path}: {what} is missing, so the bridge cannot move this robot"


def _checkpoint_problems(folder: Path) -> Iterator[str]:
    if not folder.is_dir():
        yield f"checkpoint: the folder {folder} is missing"
        return
    if not any(folder.glob("*.safetensors")):
        nested = sorted(path.parent for path in folder.glob("*/*.safetensors"))
        hint = f"; did you mean {nested[0]}?" if nested else ""
        yield f"checkpoint: {folder} has no weights (*.safetensors){hint}"
    elif not any((folder / name).is_file() for name in (CONFIG, TOKENIZER)):
        yield f"checkpoint: {folder} has no {CONFIG}"


def _folder_problems(folder: Path) -> Iterator[str]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        yield f"record_dir: cannot write to {folder}: {error.strerror}"
