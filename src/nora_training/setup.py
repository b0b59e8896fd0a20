"""Package nora_training: offline training from bags."""

from setuptools import find_packages, setup

setup(
    name="nora_training",
    version="0.1.0",
    packages=find_packages(),
    data_files=[
        ("share/ament_index/resource_index/packages", ["resource/nora_training"]),
        ("share/nora_training", ["package.xml"]),
    ],
    package_data={"nora_training": ["py.typed"]},
    license="Apache-2.0",
    entry_points={
        "console_scripts": [
            "nora-dataset = nora_training.cli:main",
            "nora-compare = nora_training.compare:main",
            "nora-sft = nora_training.sft.cli:main",
        ]
    },
)
