"""Check that what the packages depend on is installed, as `rosdep check` does, without rosdep.

Usage: python check_ros.py SRC. A key is satisfied by a package of the workspace, by one in the
ament index or, if it starts with python3-, by a module that this Python finds. Prints the command
that installs what is missing, and exits with 1.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from xml.etree import ElementTree

DEPEND_TAGS = ("depend", "build_depend", "buildtool_depend", "exec_depend", "test_depend")
MODULES = {"opencv": "cv2", "yaml": "yaml", "pytest-timeout": "pytest_timeout"}
BUILD_TOOL = "python3-colcon-common-extensions"
FROM_REQUIREMENTS = ("python3-hypothesis", "python3-mypy", "python3-pytest-timeout")


def dependencies(src: Path) -> set[str]:
    """Keys in the package files below `src`, without the packages of `src` itself."""
    keys, names = {BUILD_TOOL}, set()
    for file in src.glob("*/package.xml"):
        package = ElementTree.parse(file).getroot()
        names.add(package.findtext("name", ""))
        keys |= {element.text or "" for tag in DEPEND_TAGS for element in package.iter(tag)}
    return keys - names - set(FROM_REQUIREMENTS)


def is_installed(key: str, prefixes: Iterable[Path]) -> bool:
    """Whether an ament package, or the module of a python3- key, is there."""
    if key == BUILD_TOOL:
        return importlib.util.find_spec("colcon_core") is not None
    if key.startswith("python3-"):
        name = key.removeprefix("python3-")
        return importlib.util.find_spec(MODULES.get(name, name)) is not None
    index = Path("share/ament_index/resource_index/packages")
    return any((prefix / index / key).exists() for prefix in prefixes)


def apt_name(key: str) -> str:
    """Debian package of a key."""
    return key if key.startswith("python3-") else f"ros-jazzy-{key.replace('_', '-')}"


def main() -> None:
    """Print what is missing and how to install it."""
    prefixes = [Path(path) for path in os.environ.get("AMENT_PREFIX_PATH", "").split(":") if path]
    missing = sorted(k for k in dependencies(Path(sys.argv[1])) if not is_installed(k, prefixes))
    if missing:
        print("missing:", *missing)
        sys.exit(f"sudo apt install {' '.join(apt_name(key) for key in missing)}")


if __name__ == "__main__":
    main()
