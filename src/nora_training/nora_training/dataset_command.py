"""The `nora-dataset` command: bags in, a data set and its report out. Runs without ROS."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from nora_core.command import run_command
from nora_core.normalization import Statistics
from nora_core.paths import embodiment_file
from nora_core.progress import progress
from nora_core.types import Outcome
from nora_training.data.bag_conversion import Result
from nora_training.data.build import Build
from nora_training.data.dataset import Dataset, Entry, statistics_json

# Torch, matplotlib and pyarrow are imported where they are used: a build would otherwise spend
# more time on them than on a short bag.
BAD_BAGS = 1
Root = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(name="data-set", metavar="DATA_SET")]
SUCCESSES = (Outcome.SUCCESS,)


@dataclass(frozen=True, slots=True)
class Selection:
    """The episodes to train on: those that ended in one of `outcomes`."""

    outcomes: tuple[Outcome, ...] = (Outcome.SUCCESS,)

    def entries(self, dataset: Dataset) -> tuple[Entry, ...]:
        """Raises `ValueError` when there are none."""
        if found := dataset.select("train", self.outcomes):
            return found
        available = sorted({entry.outcome for entry in dataset.entries})
        wanted = [outcome.name for outcome in self.outcomes]
        raise ValueError(
            f"--outcomes: no episode to train on ended in {wanted}, available: {available}"
        )

    def statistics(self, dataset: Dataset) -> Statistics:
        return dataset.statistics(self.entries(dataset))


def main() -> None:
    """Exit code 0: all is well; 1: some bags were skipped; 2: bad input; 130: interrupted."""
    run_command(_run, "stopped; the same command goes on from here")


def _run() -> int:
    commands: dict[str, Callable[..., Build | int]] = {
        "build": Build,
        "stats": _stats,
        "check": _check,
        "view": _view,
        "fast": _fast,
        "export-lerobot": _export_lerobot,
        "import-lerobot": _import_lerobot,
    }
    command: Build | int = tyro.extras.subcommand_cli_from_dict(
        commands, prog="nora-dataset", description=__doc__
    )
    return _build(command) if isinstance(command, Build) else command


def _build(build: Build) -> int:
    results: list[Result] = []
    bags = build.prepare()
    with progress(len(bags), "bag") as bar:
        for result in build.run(bags):
            results.append(result)
            bar.update()
            if result.entry is None:
                bar.write(f"skipped {result.bag}: {result.reason}", file=sys.stderr)
            elif result.is_red:
                bar.write(f"RED {result.bag}: converted, but see its audit.md", file=sys.stderr)
    if left_out := build.finish(results):
        print(
            f"left out {_count(len(left_out), 'episode')} that the data set held before, such as "
            f"{left_out[0].bag}: not among these bags; name all folders in one command to have "
            "all of them in the data set",
            file=sys.stderr,
        )
    bad = sum(result.entry is None for result in results)
    new = sum(result.is_new for result in results)
    red = sum(result.is_red for result in results)
    dataset = Dataset.load(build.out)
    sides = [dataset.split(entry) for entry in dataset.entries]
    print(
        f"{build.out}: {_count(len(sides), 'episode')} ({sides.count('train')} train, "
        f"{sides.count('val')} val), {sum(e.num_steps for e in dataset.entries)} steps; "
        f"{new} new, {len(results) - new - bad} there already, {_count(bad, 'bad bag')} skipped"
        + (f", {red} RED" if red else "")
    )
    _warn_of_split(dataset)
    return BAD_BAGS if bad or not results else 0


def _warn_of_split(dataset: Dataset) -> None:
    if dataset.entries and (warning := dataset.split_warning()):
        print(f"warning: {warning}", file=sys.stderr)


def _count(number: int, name: str) -> str:
    return f"{number} {name}" if number == 1 else f"{number} {name}s"


def _stats(root: Root, outcomes: tuple[Outcome, ...] = SUCCESSES) -> int:
    """Write the quantiles of the actions to `norm_stats.json` in the data set.

    Args:
        root: folder of the data set.
        outcomes: take the episodes that ended in one of these ways.
    """
    dataset = Dataset.load(root)
    key = dataset.embodiment.action.statistics_key
    text = statistics_json(key, Selection(outcomes).statistics(dataset))
    (root / "norm_stats.json").write_text(text)
    print(text, end="")
    return 0


def _check(root: Root, outcomes: tuple[Outcome, ...] = SUCCESSES) -> int:
    """Check the data, and write `report/report.md` with plots; exit code 1 if there are problems.

    Args:
        root: folder of the data set.
        outcomes: take the episodes that ended in one of these ways.
    """
    from nora_training.data.quality import assess
    from nora_training.data.quality_report import write_report

    dataset = Dataset.load(root)
    statistics = Selection(outcomes).statistics(dataset)
    for entry in dataset.entries:
        for camera in dataset.cameras:
            dataset.images(entry, camera.name)
    quality = assess(dataset, statistics)
    print(write_report(root / "report", dataset, statistics, quality))
    for problem in quality.problems:
        print(f"- {problem}")
    for remark in quality.remarks:
        print(f"- (no fault) {remark}")
    return 1 if quality.problems else 0


def _view(
    root: Root,
    episode: Annotated[int, tyro.conf.Positional, tyro.conf.arg(metavar="EPISODE")],
    out: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None,
    outcomes: tuple[Outcome, ...] = SUCCESSES,
) -> int:
    """Write one episode as a video with its actions.

    Args:
        root: folder of the data set.
        episode: number of the episode in index.json, from 0.
        out: file of the video; `report/episode_N.mp4` in the data set if not given.
        outcomes: draw the bars within the quantiles of the episodes that ended in one of these
            ways.
    """
    from nora_training.data.view import write_video

    dataset = Dataset.load(root)
    if not 0 <= episode < len(dataset.entries):
        raise ValueError(f"EPISODE: expected 0 ... {len(dataset.entries) - 1}, got {episode}")
    path = out or root / "report" / f"episode_{episode}.mp4"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, dataset, dataset.entries[episode], Selection(outcomes).statistics(dataset))
    print(path)
    return 0


def _fast(
    root: Root,
    *,
    out: Path,
    vocab_size: int = 2048,
    horizon: int = 5,
    outcomes: tuple[Outcome, ...] = SUCCESSES,
) -> int:
    """Fit a FAST vocabulary to the actions, for `nora-sft --fast`.

    Args:
        root: folder of the data set.
        out: folder for the files of the tokenizer.
        vocab_size: largest number of tokens.
        horizon: steps per chunk, as the network predicts them.
        outcomes: take the episodes that ended in one of these ways.
    """
    from nora_training.data.vocabulary import fit

    if horizon < 1:
        raise ValueError(f"--horizon: expected at least 1, got {horizon}")
    if vocab_size < 256:  # of bytes
        raise ValueError(f"--vocab-size: expected at least 256, got {vocab_size}")
    dataset = Dataset.load(root)
    selection = Selection(outcomes)
    entries = selection.entries(dataset)
    statistics = selection.statistics(dataset)
    found = fit(dataset, entries, statistics, horizon=horizon, size=vocab_size)
    found.tokenizer.save(out)
    print(
        f"{out}: {found.tokenizer.vocab_size} tokens from {found.num_chunks} chunks of {horizon} "
        f"steps, {found.tokens_per_chunk:.1f} tokens each"
    )
    return 0


def _export_lerobot(root: Root, *, out: Path, crf: int = 18) -> int:
    """Write a data set for LeRobot (v3.0), with all episodes whatever their outcome.

    Args:
        root: folder of the data set.
        out: folder to make; it must not exist, and appears when it is complete.
        crf: quality of the videos, from 0 (lossless, RGB) to 51 (worst).
    """
    from nora_training.lerobot.exporting import Export

    dataset = Dataset.load(root)
    entries = Export(root, out, crf).run(dataset)
    done = list(progress(entries, "episode", total=len(dataset.entries)))
    steps = sum(entry.num_steps for entry in done)
    print(f"{out}: {_count(len(done), 'episode')}, {steps} steps")
    return 0


def _import_lerobot(
    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="LEROBOT_DATA_SET")],
    *,
    out: Path,
    embodiment: Annotated[str, tyro.conf.arg(metavar="NAME|FILE")],
    action_names: tuple[str, ...] = (),
    images: tuple[str, ...] = (),
    outcome: Outcome = Outcome.SUCCESS,
    image_size: int = 224,
    val_fraction: float = 0.1,
) -> int:
    """Convert a LeRobot data set (v3.0) to one of ours; exit code 1 if episodes were skipped.

    Its actions must be what the embodiment's are: per step, m and rad, gripper 0 closed ... 1
    open. Images are neither rotated nor cropped, whatever the embodiment does to its own.

    Args:
        folder: folder of the LeRobot data set, version 3.
        out: folder of the data set to make; it must not exist, and appears when it is complete.
        embodiment: name or YAML file of the robot.
        action_names: names of the embodiment's actions in the LeRobot data set, in its order, or
            their numbers if they have no names; if not given, as in the embodiment.
        images: features with the images of the embodiment's cameras, in its order; if not given,
            observation.images.CAMERA.
        outcome: outcome of episodes that another program recorded.
        image_size: side of the square images in pixels, as the policy takes them.
        val_fraction: share of the episodes that are used for validation only.
    """
    from nora_training.lerobot.importing import Import

    command = Import(
        folder=folder,
        embodiment=embodiment_file(embodiment),
        out=out,
        action_names=action_names,
        images=images,
        outcome=outcome,
        image_size=image_size,
        val_fraction=val_fraction,
    )
    source = command.open()
    entries, problems = [], []
    with progress(len(source.rows), "episode") as bar:
        for done in command.run(source):
            bar.update()
            if isinstance(done, str):
                problems.append(done)
                bar.write(f"skipped {done}", file=sys.stderr)
            else:
                entries.append(done)
    steps = sum(entry.num_steps for entry in entries)
    print(f"{out}: {_count(len(entries), 'episode')}, {steps} steps; {len(problems)} skipped")
    _warn_of_split(Dataset.load(out))
    return BAD_BAGS if problems else 0


if __name__ == "__main__":
    main()
