"""Package nora_policy: networks, checkpoints, policy node."""

from setuptools import find_packages, setup

setup(
    name="nora_policy",
    version="0.1.0",
    packages=find_packages(),
    data_files=[
        ("share/ament_index/resource_index/packages", ["resource/nora_policy"]),
        ("share/nora_policy", ["package.xml"]),
    ],
    package_data={"nora_policy": ["py.typed"]},
    install_requires=[
        "nora_core",
        "huggingface_hub",
        "numpy",
        "safetensors",
        "scipy",
        "threadpoolctl",
        "tokenizers",
        "torch",
        "tqdm",
        "transformers",
        "tyro",
    ],
    license="Apache-2.0",
    entry_points={
        "console_scripts": [
            "policy = nora_policy.nodes.entry:policy",
            "nora-checkpoint = nora_policy.checkpoints.cli:main",
        ]
    },
)
