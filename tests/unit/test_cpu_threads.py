"""Waiting threads of inference sleep; how many threads there are."""

import os
import subprocess
import sys

import pytest

from nora_policy import cpu_threads

CODE = """
from nora_policy.cpu_threads import sleep_at_barriers
sleep_at_barriers()
import torch
"""


def shown_environment(**environment: str) -> str:
    """What libgomp says of its settings when torch loads it."""
    variables = {**os.environ, "OMP_DISPLAY_ENV": "verbose", **environment}
    variables.pop("GOMP_SPINCOUNT", None)
    if "OMP_WAIT_POLICY" not in environment:
        variables.pop("OMP_WAIT_POLICY", None)
    done = subprocess.run(
        [sys.executable, "-c", CODE], env=variables, capture_output=True, text=True, check=True
    )
    return done.stderr


def test_threads_do_not_spin_at_barriers() -> None:
    assert "GOMP_SPINCOUNT = '0'" in shown_environment()


def test_a_wait_policy_that_is_set_stays() -> None:
    assert "GOMP_SPINCOUNT = '0'" not in shown_environment(OMP_WAIT_POLICY="active")


def test_after_torch_it_is_too_late() -> None:
    import torch  # noqa: F401

    with pytest.raises(RuntimeError, match="before torch is imported"):
        cpu_threads.sleep_at_barriers()


@pytest.mark.parametrize(("cores", "threads"), [(1, 1), (2, 1), (16, 15)])
def test_one_core_is_left_free(cores: int, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))
    assert cpu_threads.default_threads() == threads
