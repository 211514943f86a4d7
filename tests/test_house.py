"""The house: how many rooms it has, what may stand on what, what is imported when. CI's import-linter holds the arrows."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import fuxictr_llm

ROOT = Path(__file__).parents[1]
CORE = Path(fuxictr_llm.__file__).parent
ZOO = ROOT / "model_zoo"


def boxes() -> set[str]:
    """Packages and modules at the top of fuxictr_llm; `model_zoo` and `benchmark_configs` are beside it."""
    packages = {path.parent.name for path in CORE.glob("*/__init__.py")}
    return (packages | {path.stem for path in CORE.glob("*.py")}) - {"__init__", "__main__"}


def imported(path: Path) -> set[str]:
    """What a file imports by its full name, wherever in the file."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_the_house_has_fourteen_rooms_and_the_contract_names_them_all():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    layers = next(contract["layers"] for contract in settings["contracts"] if contract["containers"] == ["fuxictr_llm"])
    assert boxes() == {*layers} - {"__main__"}
    assert len(boxes()) <= 14


def test_the_core_imports_no_method_and_nobody_a_top_level_model_zoo():
    for path in CORE.rglob("*.py"):
        assert not [name for name in imported(path) if "model_zoo" in name.split(".")], path
    for path in ZOO.rglob("*.py"):
        assert not [name for name in imported(path) if name.split(".")[0] == "model_zoo"], path


def test_importing_the_package_imports_nothing_heavy():
    """In a process of its own; what serving imports is in serving/test_load.py."""
    heavy = {"torch", "fuxictr", "pandas", "transformers", "peft", "accelerate", "ray"}
    show = f"import fuxictr_llm, sys; print(*sorted({heavy!r} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", show], capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout.strip() == ""
