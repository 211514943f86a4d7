"""The graphs that can lie beside an exported model, for programs without this package: ONNX and torch.export."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from fuxictr_llm.common.errors import unknown
from fuxictr_llm.serving.load import ServedModel

AFFECTS_RESULTS = False  # see common/code_digest.py

KINDS = ("onnx", "pt2")


def check_graphs(kinds: Collection[str]) -> None:
    """Check that these graphs can be written here.

    Raises:
        UserError: there is no such kind, or its packages are not installed.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise unknown("kind of graph", kind, KINDS)
    if "onnx" in kinds:
        from fuxictr_llm.serving.onnx import check_onnx

        check_onnx()


def write_graphs(served: ServedModel, folder: Path, kinds: Collection[str]) -> dict[str, Any]:
    """Write the graphs of a served model into a folder; kind -> its files, what wrote them, how near they are.

    Raises:
        UserError: the model has no such graph.
    """
    if not kinds:
        return {}
    # Here, for every run imports this module, and few write graphs.
    from fuxictr_llm.serving.onnx import write_onnx
    from fuxictr_llm.serving.pt2 import write_pt2
    from fuxictr_llm.serving.traced import traced

    program, writers = traced(served), {"onnx": write_onnx, "pt2": write_pt2}
    return {kind: writers[kind](program, served, folder) for kind in KINDS if kind in kinds}


def files_of_graphs(config: Mapping[str, Any]) -> set[str]:
    """The names of the graphs' files, from the config.json of an export; anyone may have written it."""
    graphs = config.get("graphs")
    parts = graphs.values() if isinstance(graphs, dict) else ()
    files = [part["files"] for part in parts if isinstance(part, dict) and isinstance(part.get("files"), dict)]
    return {name for names in files for name in names}
