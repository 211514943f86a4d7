from pathlib import Path

from setuptools import find_packages, setup

# FuxiCTR's wheel and checkouts own the top-level name `model_zoo`, so ours is installed below
# `fuxictr_llm`, together with the YAML files: an installed wheel works outside the checkout.
MAPPED = {"fuxictr_llm.model_zoo": "model_zoo", "fuxictr_llm.benchmark_configs": "benchmark_configs"}


def packages() -> list[str]:
    found = find_packages(include=["fuxictr_llm", "fuxictr_llm.*"])
    for name, folder in MAPPED.items():
        found += [name, *(f"{name}.{child}" for child in find_packages(folder))]
    return found


setup(
    name="fuxictr-llm",
    version="0.1.0",
    description="Language models for click-through-rate prediction, as a plugin of FuxiCTR",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    package_dir={"fuxictr_llm": "fuxictr_llm", **MAPPED},
    packages=packages(),
    package_data={"fuxictr_llm": ["py.typed"], "fuxictr_llm.benchmark_configs": ["**/*.yaml", "**/*.csv"]},
    entry_points={"console_scripts": ["fuxictr-llm = fuxictr_llm.__main__:main"]},
    install_requires=[
        "fuxictr>=2.3.10,<2.4",
        "polars<2",  # FuxiCTR 2.3 reads csv with arguments that polars 2 dropped
        "torch>=2.6",
        "transformers>=5,<6",
        "accelerate",  # what transformers' Trainer stands on
        "peft>=0.21",
        "gguf",  # reads the packaged SmolLM2 weights
        "safetensors",
        "pydantic>=2",
        "pyyaml",
        "numpy",
        "pandas",
        "pyarrow",
        "h5py",
        "filelock",
        "matplotlib>=3.9",
        "scikit-learn",
        "scipy",
        "threadpoolctl",
        "psutil",
        "rich",
        "tqdm",
        "typing_extensions",
    ],
    extras_require={
        "tune": ["optuna>=5"],
        "tensorboard": ["tensorboard"],
        "onnx": ["onnx", "onnxscript", "onnxruntime"],
        "serve": ["starlette", "uvicorn"],
        "test": [
            "pytest",
            "pytest-xdist",
            "hypothesis",
            "ruff",
            "mypy",
            "import-linter",
            "setuptools>=77",
            "optuna>=5",
            "tensorboard",
            "onnx",
            "onnxscript",
            "onnxruntime",
            "starlette",
            "uvicorn",
            "playwright",  # drives a Chromium, where there is one
        ],
    },
)
