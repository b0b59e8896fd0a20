"""A graph of nodes together with the client that runs trials on it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from nora_bringup.graph import Options, node_specs
from nora_bringup.standalone import start_graph
from nora_bringup.start_checks import require_startable
from nora_bringup.trials.client import TrialClient, trial_client
from nora_core.embodiment import Embodiment
from nora_core.paths import embodiment_file


@contextlib.contextmanager
def graph_client(
    options: Options, logs: Path, say: Callable[[str], None] = lambda _: None
) -> Iterator[TrialClient]:
    """A ready client of a graph that runs while the context lasts.

    Args:
        options: of the graph.
        logs: folder of the nodes' output, one file per node.
        say: gets the progress of the start, one line per node.

    Raises:
        ValueError: the options make no sense.
        RuntimeError: a node ended, with its last line, or did not answer; at any time.
    """
    require_startable(options)
    logs.mkdir(parents=True, exist_ok=True)
    embodiment = Embodiment.load(embodiment_file(options.embodiment))
    with start_graph(node_specs(options), logs) as graph:

        def check() -> None:
            if ended := graph.ended():
                lines = (logs / f"{ended.split()[0]}.log").read_text(errors="replace").splitlines()
                raise RuntimeError(f"{ended}: {lines[-1] if lines else 'it printed nothing'}")

        with trial_client(
            embodiment,
            check,
            has_recorder=bool(options.record_dir),
            use_sim_time=options.use_sim_time,
        ) as client:
            client.wait_until_ready(say)
            yield client
