"""Who may import whom: read from the source, so that no import hides in a branch."""

import ast
import sys
from pathlib import Path

import pytest

SRC = Path(__file__).parents[2] / "src"
POLICY = SRC / "nora_policy/nora_policy"
BRINGUP = SRC / "nora_bringup/nora_bringup"
TRAINING = SRC / "nora_training/nora_training"

TORCH = {"torch", "transformers", "tokenizers", "safetensors", "onnxruntime"}
ROS = {
    "rclpy",
    "nora_msgs",
    "sensor_msgs",
    "std_msgs",
    "std_srvs",
    "geometry_msgs",
    "diagnostic_msgs",
    "lifecycle_msgs",
    "rcl_interfaces",
    "rosgraph_msgs",
    "builtin_interfaces",
    "ament_index_python",
    "launch",
    "launch_ros",
    "cv_bridge",
    "moveit",
}
NUMPY_FILES = [
    POLICY / f"{name}.py"
    for name in (
        "schema",
        "embodiment",
        "types",
        "observation",
        "normalization",
        "images",
        "chunk_player",
        "motion",
        "safety",
        "goal",
        "inference",
    )
]
NUMPY_MODULES = {f"nora_policy.{path.stem}" for path in NUMPY_FILES}
NUMPY_LIBRARIES = {"numpy", "scipy", "yaml", "ruckig"}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def roots(modules: set[str]) -> set[str]:
    return {module.split(".")[0] for module in modules}


def files(folder: Path, *without: Path) -> list[Path]:
    paths = sorted(folder.rglob("*.py"))
    return [path for path in paths if not any(path.is_relative_to(skip) for skip in without)]


def name(path: Path) -> str:
    return str(path.relative_to(SRC))


@pytest.mark.parametrize("path", NUMPY_FILES, ids=name)
def test_numpy_layer_imports_numpy_only(path):
    found = imports(path)
    inside = {module for module in found if module.startswith("nora_policy.")}
    assert roots(found) - sys.stdlib_module_names - {"nora_policy"} <= NUMPY_LIBRARIES
    assert all(any(f"{module}.".startswith(f"{m}.") for m in NUMPY_MODULES) for module in inside)


@pytest.mark.parametrize("path", files(POLICY, POLICY / "nodes"), ids=name)
def test_nothing_in_nora_policy_but_its_nodes_imports_ros(path):
    assert not roots(imports(path)) & (ROS | {"nora_bringup", "nora_training"})


@pytest.mark.parametrize("path", files(BRINGUP / "sim") + files(BRINGUP / "bags"), ids=name)
def test_the_simulator_and_its_bags_import_neither_ros_nor_torch(path):
    assert not roots(imports(path)) & (ROS | TORCH | {"nora_training"})


@pytest.mark.parametrize(
    "path",
    [*files(BRINGUP / "trials", BRINGUP / "trials/ros.py"), BRINGUP / "video.py"],
    ids=name,
)
def test_trials_in_simulation_need_no_ros(path):
    found = imports(path)
    assert not roots(found) & ROS
    needs_ros = {f"nora_bringup.{name}" for name in ("trial", "report", "demo", "standalone")}
    assert not found & needs_ros


@pytest.mark.parametrize("path", files(BRINGUP), ids=name)
def test_bringup_never_imports_torch_or_training(path):
    found = imports(path)
    assert not roots(found) & (TORCH | {"nora_training"})
    allowed = NUMPY_MODULES | {"nora_policy.nodes"}
    allowed |= {f"nora_policy.nodes.{name}" for name in ("convert", "runtime", "signals")}
    inside = {module for module in found if module.startswith("nora_policy")}
    assert all(any(f"{module}.".startswith(f"{m}.") for m in allowed) for module in inside)
    assert not {module for module in inside if module.startswith("nora_policy.nodes.policy")}


@pytest.mark.parametrize("path", files(TRAINING), ids=name)
def test_training_never_imports_ros_or_nodes(path):
    found = imports(path)
    assert not roots(found) & ROS
    assert not {module for module in found if module.startswith("nora_policy.nodes")}


@pytest.mark.parametrize(
    "path", [POLICY / "nodes" / f for f in ("convert.py", "runtime.py", "signals.py")]
)
def test_what_bringup_takes_from_the_nodes_is_free_of_torch(path):
    found = imports(path)
    assert not roots(found) & TORCH
    inside = {module for module in found if module.startswith("nora_policy.")}
    allowed = NUMPY_MODULES | {"nora_policy.nodes.signals"}
    assert all(any(f"{module}.".startswith(f"{m}.") for m in allowed) for module in inside)
