"""Package nora_core: what every machine shares; no torch."""

from setuptools import find_packages, setup

setup(
    name="nora_core",
    version="0.1.0",
    packages=find_packages(),
    data_files=[
        ("share/ament_index/resource_index/packages", ["resource/nora_core"]),
        ("share/nora_core", ["package.xml"]),
    ],
    package_data={"nora_core": ["py.typed", "arms/*.xml", "sim/*.xml"]},
    install_requires=[
        "apsw",
        "av",
        "backports.zstd",
        "matplotlib",
        "mink",
        "mujoco",
        "numpy",
        "opencv-python-headless",
        "pyyaml",
        "quadprog",
        "rosbags",
        "ruckig",
        "scipy",
        "tqdm",
        "tyro",
    ],
    license="Apache-2.0",
    entry_points={
        "console_scripts": [
            "nora-collect = nora_core.sim.collect:main",
        ]
    },
)
