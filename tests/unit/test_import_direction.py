"""Who may import whom: DESIGN's table of packages, read from the sources and from `package.xml`.

Imports are followed transitively, and module names in strings count as imports, so that none
hides in a branch, behind another module or in the arguments of a child process.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from catkin_pkg.package import parse_package
from packages import PACKAGES, ROS, SRC, TORCH, Graph, module_of, named_in

IN_REQUIREMENTS = re.compile(r"<!-- Not in apt.*?:\s*([^.]*)\. -->", re.DOTALL)
ROS_ROOMS = ("nora_core.ros", "nora_policy.nodes")

# Room: what nothing in it may reach, at any distance. The longest matching room counts.
WALLS: dict[str, set[str]] = {
    "nora_core": ROS | TORCH | {"nora_policy", "nora_bringup", "nora_training"},
    "nora_core.ros": TORCH | {"nora_policy", "nora_bringup", "nora_training"},
    "nora_policy": ROS | {"nora_bringup", "nora_training"},
    "nora_policy.nodes": {"nora_bringup", "nora_training"},
    "nora_bringup": TORCH | {"nora_policy", "nora_training"},
    "nora_training": ROS | {"nora_bringup"},
}


def wall_of(module: str) -> set[str]:
    rooms = [room for room in WALLS if f"{module}.".startswith(f"{room}.")]
    return WALLS[max(rooms, key=len)]


def violations(src: Path) -> Iterator[str]:
    graph = Graph(src)
    for module in sorted(graph.modules):
        forbidden = wall_of(module)
        for there, named_by in graph.reach(module).items():
            # Rooms with rclpy are closed to everybody who may not have it.
            is_room_of_ros = "rclpy" in forbidden and there.startswith(ROS_ROOMS)
            if there.split(".")[0] in forbidden or is_room_of_ros:
                yield f"{module} reaches {there} through {named_by}"


def test_every_room_keeps_to_its_side_of_the_wall():
    assert list(violations(SRC)) == []


def planted(tmp_path: Path, file: str, line: str) -> list[str]:
    for name in PACKAGES:
        for path in (SRC / name / name).rglob("*.py"):
            copy = tmp_path / path.relative_to(SRC)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text(path.read_text())
    with (tmp_path / file).open("a") as target:
        target.write(f"\n{line}\n")
    return list(violations(tmp_path))


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("nora_core/nora_core/types.py", "import torch"),
        ("nora_core/nora_core/control/status.py", "from nora_core.ros import convert"),
        ("nora_policy/nora_policy/policy.py", "import nora_bringup.graph"),
        (
            "nora_bringup/nora_bringup/standalone.py",
            "def f():\n    import nora_policy",
        ),
        ("nora_bringup/nora_bringup/graph.py", 'MODULE = "nora_training.evaluation.rollout"'),
        ("nora_core/nora_core/types.py", 'importlib.import_module("torch")'),
        ("nora_core/nora_core/types.py", '__import__("torch")'),
        ("nora_core/nora_core/types.py", 'exec("import torch")'),
        ("nora_core/nora_core/types.py", "import torchvision"),
        ("nora_bringup/nora_bringup/graph.py", 'C = ["python", "-m", "nora_training"]'),
        ("nora_bringup/nora_bringup/graph.py", '__import__(f"nora_policy.{C}")'),
        ("nora_training/nora_training/sft/export.py", "import nora_policy.nodes.policy"),
    ],
)
def test_a_planted_violation_is_found(tmp_path, file, line):
    module = module_of(tmp_path / file, tmp_path)
    assert any(found.startswith(f"{module} reaches") for found in planted(tmp_path, file, line))


@pytest.mark.parametrize("name", PACKAGES)
def test_imports_and_package_file_agree(name):
    """Every import is declared, and every declared package of ours or of ROS is used."""
    package = parse_package(str(SRC / name))
    declared = {d.name.removeprefix("python3-") for d in package.exec_depends}
    pip = IN_REQUIREMENTS.search((SRC / name / "package.xml").read_text())
    assert pip is not None
    graph = Graph(SRC)
    used = {
        there.split(".")[0]
        for module in graph.modules
        if module.split(".")[0] == name
        for there in graph.edges[module]
    }
    launch = [named_in(path) for path in (SRC / name / "launch").glob("*.py")]
    used |= {module.split(".")[0] for modules in launch for module in modules}
    used = {{"cv2": "opencv"}.get(root, root) for root in used} - sys.stdlib_module_names - {name}
    assert used <= declared | set(pip[1].replace(",", " ").split())
    ours_or_ros = {key for key in declared if key in ROS or key.startswith("nora_")}
    assert ours_or_ros - used == set()


def test_a_docstring_may_name_what_it_likes(tmp_path):
    line = 'def f():\n    """See nora_training.sft.export."""'
    assert planted(tmp_path, "nora_bringup/nora_bringup/graph.py", line) == []


def test_no_two_rooms_import_each_other():
    graph = Graph(SRC)

    def room(module: str) -> str:
        parts = module.split(".")
        return ".".join(parts[:2]) if len(parts) > 2 else module

    edges = {(room(a), room(b)) for a, names in graph.edges.items() for b in names}
    circles = sorted((a, b) for a, b in edges if a < b and (b, a) in edges)
    assert circles == []
