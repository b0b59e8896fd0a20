"""The packages of the suite, their modules and what these import: read from the sources."""

from __future__ import annotations

import ast
import re
from pathlib import Path

SRC = Path(__file__).parents[1] / "src"
PACKAGES = ("nora_core", "nora_policy", "nora_bringup", "nora_training")
TORCH = {"torch", "transformers", "tokenizers", "safetensors", "accelerate", "peft", "onnxruntime"}
ROS = {"rclpy", "nora_msgs", "sensor_msgs", "std_msgs", "std_srvs", "geometry_msgs", "launch"}
ROS |= {"diagnostic_msgs", "lifecycle_msgs", "rcl_interfaces", "rosgraph_msgs", "launch_ros"}
ROS |= {"builtin_interfaces", "ament_index_python", "cv_bridge", "moveit", "action_msgs"}
NAMED = re.compile(r"\bnora_(?:core|policy|bringup|training)(?:\.[a-z_0-9]+)+\b")


def module_of(path: Path, src: Path) -> str:
    parts = path.relative_to(src).with_suffix("").parts[1:]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def named_in(path: Path) -> set[str]:
    """Every module that a file imports or names in a string that is not a docstring."""
    found: set[str] = set()
    tree = ast.parse(path.read_text())
    prose = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module or ""}
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in prose
        ):
            found |= set(NAMED.findall(node.value))
    return found


class Graph:
    """Modules below `src` and what they name; other modules by their root."""

    def __init__(self, src: Path) -> None:
        files = {
            module_of(p, src): p for name in PACKAGES for p in (src / name / name).rglob("*.py")
        }
        self.modules = files
        self.edges: dict[str, set[str]] = {}
        for module, path in self.modules.items():
            self.edges[module] = {self._known(name) for name in named_in(path)} - {module}

    def _known(self, name: str) -> str:
        if name.split(".")[0] not in PACKAGES:
            return name.split(".")[0]
        while name not in self.modules and "." in name:
            name = name.rpartition(".")[0]
        return name

    def reach(self, module: str) -> dict[str, str]:
        """Everything reachable from `module`, with the module that names it."""
        via: dict[str, str] = {}
        waiting = [module]
        while waiting:
            here = waiting.pop()
            for there in self.edges.get(here, ()):
                if there not in via:
                    via[there] = here
                    waiting.append(there)
        return via
