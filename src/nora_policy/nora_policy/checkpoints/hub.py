"""Published checkpoints from the Hugging Face hub: the only code here that uses the network."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from nora_core.files import write_json
from nora_policy.checkpoints import files, published

COMMIT = re.compile(r"[0-9a-f]{40}")
WANTED = (".json", ".safetensors", ".jinja", ".txt", ".md")


@dataclass(frozen=True, slots=True)
class Remote:
    """A file of a repository; `sha256` where the hub knows it (large files)."""

    name: str
    size: int
    sha256: str | None


def check_request(repo: str, revision: str) -> None:
    """Raise `ValueError` unless `revision` is a whole commit of a repository `owner/name`."""
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", repo):
        raise ValueError(f"repo: expected owner/name such as declare-lab/nora, got {repo!r}")
    if not COMMIT.fullmatch(revision):
        raise ValueError(
            f"revision: expected the 40 hex digits of a commit, got {revision!r}; find it with "
            f"git ls-remote https://huggingface.co/{repo}"
        )


def download(repo: str, out: Path, revision: str) -> dict[str, str]:
    """Fetch one commit into `out`; an interrupted download is resumed.

    Returns the sha256 of every file, which `source.json` in `out` records. Pickles and code are
    not fetched.

    Raises:
        ValueError: the commit is not pinned, `out` holds another one, or a file arrived damaged.
        OSError: the hub cannot be reached, or does not have it.
    """
    check_request(repo, revision)
    record = out / published.SOURCE
    if record.is_file():
        held = files.read_json(record)
        if (held.get("repo"), held.get("revision")) != (repo, revision):
            raise ValueError(
                f"{out}: expected {repo} at {revision}, it holds {held.get('repo')} at "
                f"{held.get('revision')}; choose another folder"
            )
    remotes = _fetch(repo, out, revision)
    digests = {remote.name: _verified(out / remote.name, remote) for remote in remotes}
    write_json(record, {"repo": repo, "revision": revision, "files": digests})
    return digests


def _fetch(repo: str, out: Path, revision: str) -> list[Remote]:
    # Slow to import, and nothing else here needs it.
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]
    from huggingface_hub.hf_api import RepoFile

    try:
        tree = HfApi().list_repo_tree(repo, revision=revision, recursive=True)
        remotes = [
            Remote(entry.path, entry.size, entry.lfs.sha256 if entry.lfs else None)
            for entry in tree
            if isinstance(entry, RepoFile) and entry.path.endswith(WANTED)
        ]
        names = [remote.name for remote in remotes]
        snapshot_download(repo, revision=revision, local_dir=out, allow_patterns=names)
    except (HTTPError, OSError) as error:
        reason = " ".join(str(error).split())
        raise OSError(f"{repo} at {revision}: {reason}") from error
    if not any(name.endswith(".safetensors") for name in names):
        raise ValueError(f"{repo} at {revision}: expected safetensors, it has only {names}")
    return remotes


def _verified(path: Path, remote: Remote) -> str:
    digest = files.sha256(path)
    if path.stat().st_size != remote.size or remote.sha256 not in (None, digest):
        raise ValueError(
            f"{path}: expected {remote.size} bytes, sha256 {remote.sha256 or 'unknown'}, "
            f"got {path.stat().st_size}, {digest}; delete it and download again"
        )
    return digest
