"""The `nora-dataset` command: bags in, a data set and its report out. Runs without ROS."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tqdm import tqdm

from nora_core.normalization import Statistics
from nora_core.types import Outcome
from nora_training.data.bag_conversion import Result
from nora_training.data.build import Build
from nora_training.data.dataset import Dataset, Entry, statistics_json

# Torch, matplotlib and pyarrow are imported where they are used: a build would otherwise spend
# more time on them than on a short bag.
BAD_BAGS, BAD_INPUT, INTERRUPTED = 1, 2, 130
Folder = tyro.conf.Positional[Path]


@dataclass(frozen=True, slots=True)
class Selection:
    """Episodes to train on.

    Attributes:
        outcomes: how they ended.
    """

    outcomes: tuple[Outcome, ...] = (Outcome.SUCCESS,)

    def entries(self, dataset: Dataset) -> tuple[Entry, ...]:
        """Raises `ValueError` when there are none."""
        if found := dataset.select("train", self.outcomes):
            return found
        available = sorted({entry.outcome for entry in dataset.entries})
        wanted = [outcome.name for outcome in self.outcomes]
        raise ValueError(
            f"outcomes: expected episodes to train on with {wanted}, available: {available}"
        )

    def statistics(self, dataset: Dataset) -> Statistics:
        return dataset.statistics(self.entries(dataset))


def main() -> None:
    """Exit code 0: all is well; 1: some bags were skipped; 2: bad input; 130: interrupted."""
    commands: dict[str, Callable[..., int]]
    commands = {"build": _build, "stats": _stats, "check": _check, "view": _view}
    commands |= {"fast": _fast}
    commands |= {"export-lerobot": _export_lerobot, "import-lerobot": _import_lerobot}
    try:
        code = tyro.extras.subcommand_cli_from_dict(commands, description=__doc__)
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(BAD_INPUT)
    sys.exit(code)


def _build(build: tyro.conf.OmitArgPrefixes[Build]) -> int:
    """Convert bags; what is converted already is not touched."""
    results: list[Result] = []
    bags = build.prepare()
    with tqdm(total=len(bags), unit="bag", disable=None) as progress:
        for result in build.run(bags):
            results.append(result)
            progress.update()
            if result.entry is None:
                progress.write(f"skipped {result.bag}: {result.reason}", file=sys.stderr)
    if left_out := build.finish(results):
        print(
            f"left out {len(left_out)} episodes of before, such as {left_out[0].bag}: not among "
            "these bags (any more); name all folders at once to have all in the data set",
            file=sys.stderr,
        )
    bad = sum(result.entry is None for result in results)
    new = sum(result.is_new for result in results)
    dataset = Dataset.load(build.out)
    sides = [dataset.split(entry) for entry in dataset.entries]
    print(
        f"{build.out}: {len(sides)} episodes ({sides.count('train')} train, "
        f"{sides.count('val')} val), {sum(e.num_steps for e in dataset.entries)} steps; "
        f"{new} new, {len(results) - new - bad} there already, {bad} bad bags skipped"
    )
    return BAD_BAGS if bad or not results else 0


def _stats(root: Folder, selection: tyro.conf.OmitArgPrefixes[Selection]) -> int:
    """Quantiles of the actions, as `norm_stats.json` into the data set.

    Args:
        root: the data set.
        selection: whose actions.
    """
    dataset = Dataset.load(root)
    key = dataset.embodiment.action.statistics_key
    text = statistics_json(key, selection.statistics(dataset))
    (root / "norm_stats.json").write_text(text)
    print(text, end="")
    return 0


def _check(root: Folder, selection: tyro.conf.OmitArgPrefixes[Selection]) -> int:
    """Is the data good? `report/report.md` with plots; exit code 1 when problems were found.

    Args:
        root: the data set.
        selection: whose quantiles the actions are held against.
    """
    from nora_training.data.quality import assess
    from nora_training.data.quality_report import write_report

    dataset = Dataset.load(root)
    statistics = selection.statistics(dataset)
    quality = assess(dataset, statistics)
    print(write_report(root / "report", dataset, statistics, quality))
    for problem in quality.problems:
        print(f"- {problem}")
    return 1 if quality.problems else 0


def _view(
    root: Folder,
    episode: Annotated[int, tyro.conf.Positional],
    selection: tyro.conf.OmitArgPrefixes[Selection],
    out: Path | None = None,
) -> int:
    """One episode as a video with its actions.

    Args:
        root: the data set.
        episode: its place in index.json, from 0.
        selection: whose quantiles the bars are drawn within.
        out: the file; `report/episode_N.mp4` in the data set if not given.
    """
    from nora_training.data.view import write_video

    dataset = Dataset.load(root)
    if not 0 <= episode < len(dataset.entries):
        raise ValueError(f"episode: expected 0 ... {len(dataset.entries) - 1}, got {episode}")
    path = out or root / "report" / f"episode_{episode}.mp4"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, dataset, dataset.entries[episode], selection.statistics(dataset))
    print(path)
    return 0


def _fast(
    root: Folder,
    selection: tyro.conf.OmitArgPrefixes[Selection],
    out: Path,
    vocab_size: int = 2048,
    horizon: int = 5,
) -> int:
    """Fit a FAST vocabulary to the actions, for `nora-sft --fast`.

    Args:
        root: the data set.
        selection: whose actions.
        out: folder for the files of the tokenizer.
        vocab_size: tokens, at most.
        horizon: steps per chunk, that of the network.
    """
    from nora_training.data.vocabulary import fit

    if horizon < 1:
        raise ValueError(f"horizon: expected at least 1, got {horizon}")
    if vocab_size < 256:  # of bytes
        raise ValueError(f"vocab_size: expected at least 256, got {vocab_size}")
    dataset = Dataset.load(root)
    entries = selection.entries(dataset)
    found = fit(dataset, entries, selection.statistics(dataset), horizon, vocab_size)
    found.tokenizer.save(out)
    print(
        f"{out}: {found.tokenizer.vocab_size} tokens from {found.num_chunks} chunks of {horizon} "
        f"steps, {found.tokens_per_chunk:.1f} tokens each"
    )
    return 0


def _export_lerobot(root: Folder, out: Folder, crf: int = 18) -> int:
    """Write a data set for LeRobot (v3.0); all episodes, whatever their outcome.

    Args:
        root: the data set.
        out: folder to make; it must not exist, and does not until all is in it.
        crf: quality of the videos, from 0 (lossless, RGB) to 51 (worst).
    """
    from nora_training.lerobot.exporting import Export

    dataset = Dataset.load(root)
    entries = Export(root, out, crf).run(dataset)
    done = list(tqdm(entries, total=len(dataset.entries), unit="episode", disable=None))
    print(f"{out}: {len(done)} episodes, {sum(entry.num_steps for entry in done)} steps")
    return 0


def _import_lerobot(
    folder: Folder,
    embodiment: Path,
    out: Path,
    action_names: tuple[str, ...] = (),
    images: tuple[str, ...] = (),
    outcome: Outcome = Outcome.SUCCESS,
    image_size: int = 224,
    val_fraction: float = 0.1,
) -> int:
    """Make a LeRobot data set (v3.0) one of ours; exit code 1 when episodes were skipped.

    Its actions must be what the embodiment's are: per step, m and rad, gripper 0 closed ... 1
    open. Images are taken as they are: upright and uncut, whatever the embodiment does to its own.

    Args:
        folder: of the LeRobot data set, version 3.
        embodiment: YAML file of the robot.
        out: folder of the data set to make; it must not exist, and does not until all is in it.
        action_names: what the embodiment's actions are called there, in its order, or their
            numbers where they have no names; not given: as in the embodiment.
        images: the features for the embodiment's cameras, in its order; not given:
            observation.images.CAMERA.
        outcome: of episodes that another program recorded.
        image_size: side of the square images, px, as the policy wants them.
        val_fraction: share of the episodes that are never trained on.
    """
    from nora_training.lerobot.importing import Import

    command = Import(
        folder, embodiment, out, action_names, images, outcome, image_size, val_fraction
    )
    source = command.open()
    entries, problems = [], []
    with tqdm(total=len(source.rows), unit="episode", disable=None) as progress:
        for done in command.run(source):
            progress.update()
            if isinstance(done, str):
                problems.append(done)
                progress.write(f"skipped {done}", file=sys.stderr)
            else:
                entries.append(done)
    steps = sum(entry.num_steps for entry in entries)
    print(f"{out}: {len(entries)} episodes, {steps} steps; {len(problems)} skipped")
    return BAD_BAGS if problems else 0


if __name__ == "__main__":
    main()
