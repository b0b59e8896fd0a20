"""Undo what interrupted installs and the ROS wheels leave in a virtual environment; repeatable.

An install that was killed leaves packages that lack files; pip takes them for installed. The
CMake files of the ROS message wheels name the Python and numpy headers of the machine that built
them, so nothing can be built against those wheels as they come.
"""

from __future__ import annotations

import csv
import re
import shutil
import sys
import sysconfig
from pathlib import Path

STALE_INCLUDE = re.compile(r'[^;"\s]*/(include/python3\.\d+|numpy/_core/include)(?=[;"\s])')


def drop_incomplete(site_packages: Path) -> list[str]:
    """Make pip forget the packages that lack files; their names."""
    names = []
    for info in sorted(site_packages.glob("*.dist-info")):
        if not is_complete(info):
            shutil.rmtree(info)
            names.append(info.name)
    return names


def is_complete(info: Path) -> bool:
    """Whether every file in the package's RECORD is there; compiled files do not count."""
    record = info / "RECORD"
    if not record.exists():
        return False
    paths = [row[0] for row in csv.reader(record.read_text().splitlines())]
    return all(path.endswith(".pyc") or (info.parent / path).exists() for path in paths)


def repair_includes(prefix: Path, python_include: str, numpy_include: str) -> int:
    """Point the CMake files below `prefix` to these headers; the number of files changed."""
    changed = 0
    for path in prefix.glob("share/*/cmake/*.cmake"):
        text = path.read_text()
        repaired = STALE_INCLUDE.sub(
            lambda match: numpy_include if "numpy" in match[1] else python_include, text
        )
        if repaired != text:
            path.write_text(repaired)
            changed += 1
    return changed


def main() -> None:
    """Usage: python repair_venv.py VENV, with the Python that the environment was made from."""
    venv = Path(sys.argv[1])
    site_packages = venv / f"lib/python{sysconfig.get_python_version()}/site-packages"
    for name in drop_incomplete(site_packages):
        print(f"incomplete: {name}")
    numpy_include = str(site_packages / "numpy/_core/include")
    count = repair_includes(venv, sysconfig.get_path("include"), numpy_include)
    print(f"CMake files repaired: {count}")


if __name__ == "__main__":
    main()
