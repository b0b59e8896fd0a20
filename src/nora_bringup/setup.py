"""Package nora_bringup: launch files, embodiments, drivers, nodes of the robot PC."""

from glob import glob

from setuptools import find_packages, setup

setup(
    name="nora_bringup",
    version="0.1.0",
    packages=find_packages(),
    data_files=[
        ("share/ament_index/resource_index/packages", ["resource/nora_bringup"]),
        ("share/nora_bringup", ["package.xml"]),
        ("share/nora_bringup/config", glob("config/*.xml")),
        ("share/nora_bringup/config/embodiments", glob("config/embodiments/*.yaml")),
        ("share/nora_bringup/config/trials", glob("config/trials/*.yaml")),
        ("share/nora_bringup/checkpoints/sim_widowx", glob("checkpoints/sim_widowx/*.*")),
        ("share/nora_bringup/checkpoints/sim_widowx/fast", glob("checkpoints/sim_widowx/fast/*")),
        ("share/nora_bringup/launch", glob("launch/*.launch.py")),
    ],
    package_data={"nora_bringup": ["py.typed"]},
    install_requires=[
        "nora_core",
        "matplotlib",
        "numpy",
        "rosbags",
        "tqdm",
        "tyro",
    ],
    license="Apache-2.0",
    entry_points={
        "console_scripts": [
            "bridge = nora_bringup.entry:bridge",
            "recorder = nora_bringup.entry:recorder",
            "sim = nora_bringup.entry:sim",
            "nora = nora_bringup.entry:nora",
        ]
    },
)
