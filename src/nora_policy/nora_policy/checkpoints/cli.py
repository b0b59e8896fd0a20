"""The `nora-checkpoint` command; also `python -m nora_policy.checkpoints.cli`, without ROS."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro
from tqdm import tqdm

from nora_core.command import run_command
from nora_core.paths import embodiment_file
from nora_policy.checkpoints import hub, inspection
from nora_policy.checkpoints.conversion import Conversion, convert

DESCRIPTION = """Checkpoints of the NORA family. Only download uses the network.

nora-checkpoint download declare-lab/nora-1.5 DIR --revision COMMIT
nora-checkpoint inspect DIR --embodiment widowx sim_widowx
nora-checkpoint convert DIR OUT --fast FAST_DIR --statistics norm_stats.json --embodiment widowx
"""
DOES_NOT_FIT = 1  # exit code


@dataclass(frozen=True, slots=True)
class Inspect:
    """Print what a checkpoint is, what is strange about it, and which robots it fits.

    Exit code 1 when it does not fit one of the robots.

    Attributes:
        folder: the checkpoint.
        horizon: 1 (NORA) or 5 (NORA-Long), where the origin of the folder does not say it.
        embodiment: names or files of robots.
    """

    folder: tyro.conf.Positional[Path]
    horizon: int | None = None
    embodiment: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Download:
    """Fetch one commit from the Hugging Face hub; an interrupted download is resumed.

    Attributes:
        repo: such as declare-lab/nora-1.5.
        out: folder for its files.
        revision: the commit, 40 hex digits.
    """

    repo: tyro.conf.Positional[str]
    out: tyro.conf.Positional[Path]
    revision: str


def main() -> None:
    """Run a subcommand."""
    command = tyro.extras.subcommand_cli_from_dict(
        {"inspect": Inspect, "convert": Conversion, "download": Download},
        prog="nora-checkpoint",
        description=DESCRIPTION,
    )
    run_command(lambda: _run(command))


def _run(command: Inspect | Conversion | Download) -> int:
    match command:
        case Inspect():
            robots = [embodiment_file(name) for name in command.embodiment]
            report = inspection.inspect(command.folder, command.horizon, robots)
            sys.stdout.write(f"{report}\n")
            return 0 if report.fits else DOES_NOT_FIT
        case Conversion():
            with tqdm(unit="B", unit_scale=True, leave=False, disable=None) as bar:
                card = convert(command, lambda number, total: _advance(bar, number, total))
            lines = [f"{command.out}: {card['description']} from {card['source']['repo']}"]
            lines += [f"! {surprise}" for surprise in card["surprises"]]
        case Download():
            digests = hub.download(command.repo, command.out, command.revision)
            lines = [f"{digest}  {command.out / name}" for name, digest in digests.items()]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def _advance(bar: tqdm, number: int, total: int) -> None:
    bar.total = total
    bar.update(number)


if __name__ == "__main__":
    main()
