"""The packages of the suite, their modules and what these import: read from the sources."""

from __future__ import annotations

import ast
import re
from itertools import pairwise
from pathlib import Path

SRC = Path(__file__).parents[1] / "src"
PACKAGES = ("nora_core", "nora_policy", "nora_bringup", "nora_training")
TORCH = {"torch", "transformers", "tokenizers", "safetensors", "accelerate", "peft", "onnxruntime"}
TORCH |= {"torchvision", "torchaudio", "functorch", "triton"}
ROS = {"rclpy", "nora_msgs", "sensor_msgs", "std_msgs", "std_srvs", "geometry_msgs", "launch"}
ROS |= {"diagnostic_msgs", "lifecycle_msgs", "rcl_interfaces", "rosgraph_msgs", "launch_ros"}
ROS |= {"builtin_interfaces", "ament_index_python", "cv_bridge", "moveit", "action_msgs"}
NAMED = re.compile(r"\bnora_(?:core|policy|bringup|training)\.[a-z_0-9.]*")
IMPORT = re.compile(r"^\s*(?:import|from)\s+([a-z_0-9.]+)", re.MULTILINE)
WALLED = TORCH | ROS | set(PACKAGES)
IMPORTERS = {"import_module", "__import__", "run_module", "find_spec"}


def module_of(path: Path, src: Path) -> str:
    parts = path.relative_to(src).with_suffix("").parts[1:]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def named_in(path: Path) -> set[str]:
    """Every module that a file imports, in any way that can be read from its source.

    That is import statements, the first argument of `import_module` and its like, what follows
    "-m" in the arguments of a process, programs in strings, and dotted names of our modules in
    strings other than docstrings. A name that is put together at run time escapes: for that, the
    modules of the robot side are imported where torch is missing (`tests/ros/test_robot_pc.py`).
    """
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
        elif isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            found |= set(texts(node.args[:1])) if name in IMPORTERS else set()
        elif isinstance(node, ast.List | ast.Tuple):
            values = [getattr(element, "value", None) for element in node.elts]
            found |= {str(b) for a, b in pairwise(values) if a == "-m" and b}
        elif isinstance(node, ast.Constant) and node not in prose:
            found |= {name.rstrip(".") for name in NAMED.findall(str(node.value))}
            programs = IMPORT.findall(str(node.value))  # or prose: "from 0 to 1"
            found |= {name for name in programs if name.split(".")[0] in WALLED}
    return found


def texts(nodes: list[ast.expr]) -> list[str]:
    """The strings among the expressions."""
    return [node.value for node in nodes if isinstance(node, ast.Constant) and node.value]


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
