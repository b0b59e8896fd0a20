"""Package nora_training: offline training and evaluation."""

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
    install_requires=[
        "nora_core",
        "nora_policy",
        "accelerate",
        "av",
        "matplotlib",
        "numpy",
        "opencv-python-headless",
        "peft",
        "pyarrow",
        "rosbags",
        "safetensors",
        "scipy",
        "tensorboard",
        "threadpoolctl",
        "tokenizers",
        "torch",
        "tqdm",
        "tyro",
    ],
    license="Apache-2.0",
    entry_points={
        "console_scripts": [
            "nora-dataset = nora_training.dataset_command:main",
            "nora-compare = nora_training.evaluation.compare.command:main",
            "nora-sft = nora_training.sft.command:main",
            "nora-trials = nora_training.evaluation.command:main",
        ]
    },
)
