"""The `nora-checkpoint` command; also `python -m nora_policy.checkpoints.cli`, without ROS."""

from __future__ import annotations

import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import tyro
from tqdm import tqdm

from nora_policy.checkpoints import hub, inspection
from nora_policy.checkpoints.conversion import Conversion, convert, source_size


@dataclass(frozen=True, slots=True)
class Inspect:
    """Print what a checkpoint is, what is strange about it, and which robots it fits.

    Attributes:
        folder: the checkpoint.
        horizon: 1 (NORA) or 5 (NORA-Long), where the origin of the folder does not say it.
        embodiment: files of robots.
    """

    folder: tyro.conf.Positional[Path]
    horizon: int | None = None
    embodiment: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class Download:
    """Fetch one commit from the Hugging Face hub; goes on where it was interrupted.

    Attributes:
        repo: such as declare-lab/nora-1.5.
        out: folder for its files.
        revision: the commit, 40 hex digits.
    """

    repo: tyro.conf.Positional[str]
    out: tyro.conf.Positional[Path]
    revision: str


def main() -> None:
    """Run a subcommand; bad input is one line and exit code 2, Ctrl-C is a clean end."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        _run(
            tyro.extras.subcommand_cli_from_dict(
                {"inspect": Inspect, "convert": Conversion, "download": Download},
                prog="nora-checkpoint",
                description="Checkpoints of the NORA family. Only download uses the network.",
            )
        )
    except KeyboardInterrupt:
        sys.stderr.write("\nstopped\n")
        sys.exit(130)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)


def _run(command: Inspect | Conversion | Download) -> None:
    match command:
        case Inspect():
            report = inspection.inspect(command.folder, command.horizon, command.embodiment)
            sys.stdout.write(f"{report}\n")
        case Conversion():
            size = source_size(command.source)
            with tqdm(total=size, unit="B", unit_scale=True, leave=False) as bar:
                card = convert(command, bar.update)
            lines = [f"{command.out}: {card['description']} from {card['source']['repo']}"]
            lines += [f"! {surprise}" for surprise in card["surprises"]]
            sys.stdout.write("\n".join(lines) + "\n")
        case Download():
            digests = hub.download(command.repo, command.out, command.revision)
            lines = [f"{digest}  {command.out / name}" for name, digest in digests.items()]
            sys.stdout.write("\n".join(lines) + "\n")


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
