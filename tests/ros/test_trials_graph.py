"""Trials through a graph that fails: what is the policy's fault is a record, the rest is not."""

from __future__ import annotations

import contextlib

import pytest

from nora_bringup.trials import runner
from nora_bringup.trials.command import Trials, run_trials
from nora_bringup.trials.telemetry import Trial
from nora_core.paths import embodiment_file
from nora_core.types import GoalError, Outcome
from nora_policy.checkpoints import untrained

EMBODIMENT = embodiment_file("sim_widowx")
PROTOCOL = """
embodiment: sim_widowx
checkpoints: [{name: a, folder: tiny, head: flow}]
tasks: [put the red cube on the plate]
seeds: {start: 100000, count: 2}
seconds: 1.0
video: none
"""


class Client:
    """A client whose trials end as given; keeps their seeds."""

    def __init__(self, *endings):
        self.endings, self.seeds = list(endings), []

    def prepare(self, instruction, seed):
        pass

    def run(self, instruction, seed, **_):
        self.seeds.append(seed)
        code = self.endings.pop(0)
        return Trial(
            instruction=instruction,
            seed=seed,
            error_code=code,
            error_msg=f"because of {code.name}",
            duration_s=1.0,
        )


@pytest.fixture
def run(tmp_path, monkeypatch):
    untrained.write_tiny(tmp_path / "tiny", EMBODIMENT)
    path = tmp_path / "study.yaml"
    path.write_text(PROTOCOL)

    def run(client):
        def connect(options, logs, say):
            return contextlib.nullcontext(client)

        monkeypatch.setattr(runner, "graph_client", connect)
        return run_trials(Trials(str(path), tmp_path / "out"))

    return run


@pytest.mark.parametrize("ending", [GoalError.NOT_ACTIVE, GoalError.PREEMPTED, GoalError.NO_IMAGE])
def test_a_trial_that_the_graph_cut_short_is_run_again(run, ending):
    with pytest.raises(RuntimeError, match=f"{ending.name}: because of .* seed 100001, does not"):
        run(Client(GoalError.TIMEOUT, ending))
    again = Client(GoalError.TIMEOUT)
    records = run(again)
    assert again.seeds == [100001]
    assert [record.job.seed for record in records] == [100000, 100001]


@pytest.mark.parametrize(
    "ending", [GoalError.NONE, GoalError.TIMEOUT, GoalError.CANCELLED, GoalError.INFERENCE_FAILED]
)
def test_every_other_end_of_a_trial_is_a_record(run, ending):
    records = run(Client(ending, ending))
    is_policy = ending is GoalError.INFERENCE_FAILED
    assert [(r.result.outcome, "because of" in r.result.error) for r in records] == [
        (Outcome.FAILURE, is_policy)
    ] * 2
