"""The packages, their dependencies, the locked requirements and the licence agree."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import check_ros
import environments
import pytest
import repair_venv
from catkin_pkg.package import Package, parse_package
from packages import ROS, Graph

ROOT = Path(__file__).parents[2]
NAMES = ["nora_bringup", "nora_core", "nora_msgs", "nora_policy", "nora_training"]
PYTHON_NAMES = [name for name in NAMES if name != "nora_msgs"]
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))
OF_DISTRIBUTION = {
    "opencv-python-headless": "cv2",
    "pyyaml": "yaml",
    "backports.zstd": "backports",
}
# Solvers that mink finds by name, the writer behind torch.utils.tensorboard.
BROUGHT_FOR_OTHERS = {"quadprog", "tensorboard"}
NO_SOURCE = {"tensorboard"}  # published as one wheel, which fits all machines


def package(name: str) -> Package:
    warnings: list[str] = []
    parsed = parse_package(str(ROOT / "src" / name), warnings=warnings)
    assert warnings == []
    return parsed


def keys(dependencies) -> set[str]:
    return {dependency.name for dependency in dependencies}


def test_there_are_five_packages():
    assert sorted(path.parent.name for path in ROOT.glob("src/*/package.xml")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_package_file_is_valid_and_named_after_its_folder(name):
    parsed = package(name)
    parsed.validate()
    assert (parsed.name, parsed.package_format) == (name, 3)
    assert parsed.licenses == ["Apache-2.0"]


@pytest.mark.parametrize("name", PYTHON_NAMES)
def test_setup_py_agrees_with_the_package_file(name):
    setup = [sys.executable, "setup.py", "--name", "--version", "--license"]
    folder = ROOT / "src" / name
    told = subprocess.run(setup, cwd=folder, check=True, capture_output=True, text=True).stdout
    assert told.split() == [name, package(name).version, "Apache-2.0"]


def test_all_packages_have_one_version():
    assert len({package(name).version for name in NAMES}) == 1


@pytest.mark.parametrize("name", PYTHON_NAMES)
def test_every_resource_file_is_installed(name):
    folder = ROOT / "src" / name
    given = setup_arguments(folder)
    told = [file for _, files in given["data_files"] for file in files]
    told += [f"{p}/{file}" for p, globs in given["package_data"].items() for file in globs]
    installed = {path for line in told for path in folder.glob(line)}
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=folder, check=False, capture_output=True, text=True
    )
    if tracked.returncode:
        pytest.skip("not a git checkout")
    resources = {folder / line for line in tracked.stdout.split()}
    resources = {p for p in resources if p.suffix in (".yaml", ".xml") or "launch" in p.parts}
    assert {path for path in resources if path.exists()} <= installed


def test_licence_is_apache_2():
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_every_requirement_is_pinned_and_hashed(lock):
    entries = re.split(r"\n(?=\S)", lock.read_text().strip())
    for entry in entries:
        assert re.match(r"[a-z0-9.-]+==\S+( ; .*)? \\\n", entry), entry
        assert "--hash=sha256:" in entry, entry
    assert "http:" not in lock.read_text()


@pytest.mark.parametrize("name", ["python.txt", "distribution.txt"])
def test_hashes_cover_more_than_one_machine(name):
    for entry in re.split(r"\n(?=\S)", (ROOT / "requirements" / name).read_text().strip()):
        few = entry.split("==")[0] in NO_SOURCE
        num_hashes = entry.count("--hash=")
        assert num_hashes > (0 if few else 1), f"locked from an index with one file? {entry}"


def test_the_locks_of_one_environment_agree():
    pins = [dict(re.findall(r"^(\S+)==(\S+)(?= \\)", lock.read_text(), re.M)) for lock in LOCKS]
    by_name = dict(zip([lock.name for lock in LOCKS], pins, strict=True))
    for a, b in (
        ("python.txt", "ros.txt"),
        ("python.txt", "robot.txt"),
        ("distribution.txt", "distribution_robot.txt"),
    ):
        both = by_name[a].keys() & by_name[b].keys()
        assert {n: by_name[a][n] for n in both} == {n: by_name[b][n] for n in both}


def test_a_robot_pc_needs_nothing_that_the_others_lack_and_no_torch():
    for part, whole in (
        ("robot.txt", "python.txt"),
        ("distribution_robot.txt", "distribution.txt"),
    ):
        names = environments.locked(part)
        assert names < environments.locked(whole)
        assert not names & {"torch", "transformers", "tokenizers", "accelerate", "peft"}


@pytest.mark.parametrize("name", PYTHON_NAMES)
def test_pip_installs_what_is_imported(name):
    """Without ROS, `pip install ./src/NAME` brings everything but ROS itself."""
    told = setup_arguments(ROOT / "src" / name)["install_requires"]
    declared = {OF_DISTRIBUTION.get(key, key).replace("-", "_") for key in told}
    graph = Graph(ROOT / "src")
    modules = [module for module in graph.modules if module.split(".")[0] == name]
    assert modules
    used = {there.split(".")[0] for module in modules for there in graph.edges[module]}
    used -= sys.stdlib_module_names | ROS | {name}
    assert used <= declared
    assert declared - used <= BROUGHT_FOR_OTHERS


def setup_arguments(folder: Path) -> dict[str, Any]:
    tell = "import json, setuptools; setuptools.setup = lambda **given: print(json.dumps(given))\n"
    program = tell + "exec(open('setup.py').read())"
    command = [sys.executable, "-c", program]
    told = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    return json.loads(told.stdout)


def test_torch_is_not_locked_because_its_build_depends_on_the_machine():
    for lock in LOCKS:
        assert not re.search(r"^(torch|nvidia-\S+)==", lock.read_text(), re.M)


def test_includes_of_the_build_machine_are_replaced_once(tmp_path):
    export = tmp_path / "share/std_msgs/cmake/export.cmake"
    export.parent.mkdir(parents=True)
    keep = "${_IMPORT_PREFIX}/include/std_msgs"
    export.write_text(
        f'INCLUDES "{keep};/opt/python/cp312-cp312/include/python3.12;'
        '/build/env/lib/python3.12/site-packages/numpy/_core/include"\n'
    )
    assert repair_venv.repair_includes(tmp_path, "/here/include/python3.11", "/here/numpy") == 1
    assert export.read_text() == f'INCLUDES "{keep};/here/include/python3.11;/here/numpy"\n'
    assert repair_venv.repair_includes(tmp_path, "/here/include/python3.11", "/here/numpy") == 0


@pytest.mark.parametrize("missing", ["module.py", "whole-1.0.dist-info/RECORD"])
def test_pip_forgets_a_package_that_lacks_files(tmp_path, missing):
    for name in ("half", "whole"):
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (tmp_path / f"{name}.py").touch()
        (info / "RECORD").write_text(
            f"{name}.py,,\n__pycache__/{name}.pyc,,\n{info.name}/RECORD,,\n"
        )
    assert repair_venv.drop_incomplete(tmp_path) == []
    broken = "half.py" if missing == "module.py" else "half-1.0.dist-info/RECORD"
    (tmp_path / broken).unlink()
    assert repair_venv.drop_incomplete(tmp_path) == ["half-1.0.dist-info"]
    assert (tmp_path / "whole-1.0.dist-info").exists()


def test_missing_distribution_packages_are_named_with_the_command(tmp_path):
    index = tmp_path / "share/ament_index/resource_index/packages"
    index.mkdir(parents=True)
    wanted = check_ros.dependencies(ROOT / "src")
    assert {"rclpy", "sensor_msgs", "python3-numpy"} <= wanted
    assert not wanted & set(NAMES)
    for key in wanted - {"sensor_msgs"}:
        (index / key).touch()
    run = subprocess.run(
        [sys.executable, ROOT / "scripts/check_ros.py", ROOT / "src"],
        env={**os.environ, "AMENT_PREFIX_PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1
    assert "sudo apt install ros-jazzy-sensor-msgs" in run.stderr
    (index / "sensor_msgs").touch()
    assert all(check_ros.is_installed(key, [tmp_path]) for key in wanted)


def test_shell_scripts_parse():
    bash = shutil.which("bash")
    for script in [*ROOT.glob("scripts/*.sh"), ROOT / ".ci/run", *ROOT.glob("docker/*.sh")]:
        subprocess.run([bash, "-n", script], check=True)
