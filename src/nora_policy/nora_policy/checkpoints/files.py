"""Files that came from elsewhere: read, hashed, and refused when they are something else."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

# The first bytes of what is often found in place of the file.
IMPOSTORS = (
    (rb"version https://git-lfs", "a Git LFS pointer, not the file itself: run `git lfs pull`"),
    (rb"\s*(?i:<!doctype|<html|<\?xml)", "a web page, not the file itself: download it again"),
    # The size of a safetensors header may begin with the same bytes; "{" comes after it.
    (
        rb"(?s)(?!.{8}\{)(PK\x03\x04|\x80[\x02-\x05])",
        "a pickle (PyTorch), which may run code when opened",
    ),
)


def check(path: Path) -> None:
    """Raise `ValueError` when `path` is empty, a web page, a Git LFS pointer or a pickle."""
    with path.open("rb") as file:
        head = file.read(256)
    if not head:
        raise ValueError(f"{path}: empty file")
    for pattern, description in IMPOSTORS:
        if re.match(pattern, head):
            raise ValueError(f"{path}: {description}")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; raises `ValueError` for anything else."""
    check(path)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(data).__name__}")
    return data


def sha256(path: Path) -> str:
    """Hash of the content, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
