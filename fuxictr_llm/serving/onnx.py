"""A served model as an ONNX file, checked with onnxruntime against torch."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.export import ExportedProgram

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.files import digest_of_file
from fuxictr_llm.serving.load import ServedModel
from fuxictr_llm.serving.traced import ROWS, first_cause, largest_difference, quiet

AFFECTS_RESULTS = False  # see common/code_digest.py

FILE = "model.onnx"
NEEDED = ("onnx", "onnxscript", "onnxruntime")
ERRORS_ALONE = 3  # onnxruntime's number for it
MOST_BYTES = 2**30  # of weights in model.onnx itself; ONNX allows 2 GiB for the whole file


def check_onnx() -> None:
    """Check that the packages of the extra are installed.

    Raises:
        UserError: one is not.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"--onnx needs {', '.join(missing)}: pip install 'fuxictr-llm[onnx]'")


def write_onnx(program: ExportedProgram, served: ServedModel, folder: Path) -> dict[str, Any]:
    """Write `model.onnx`; its weights lie in `model.onnx.data` beside it where they have more than 1 GiB.

    Inputs have the names of the columns, outputs those of the labels.

    Returns:
        The files with their digests, what wrote them, and the largest difference from torch.

    Raises:
        UserError: the exporter lacks an operator, or onnxruntime does not predict what torch does.
    """
    import onnxruntime
    import onnxscript

    name, before = served.config["model"], {*folder.iterdir()}
    try:
        with quiet():
            graph = _translated(program, served)
            graph.save(folder / FILE, external_data=_bytes_of_weights(served) > MOST_BYTES)
            options = onnxruntime.SessionOptions()
            options.log_severity_level = ERRORS_ALONE
            session = onnxruntime.InferenceSession(folder / FILE, options, providers=["CPUExecutionProvider"])
            difference = largest_difference(served, lambda batch: _answers(session, batch))
    except UserError:
        raise
    except Exception as error:  # the exporter and onnxruntime have errors of their own, of many kinds
        raise UserError(f"{name} cannot be exported as ONNX ({first_cause(error)}); leave out --onnx") from error
    return {
        "files": {path.name: digest_of_file(path) for path in sorted({*folder.iterdir()} - before)},
        "exporter": f"torch.onnx {torch.__version__} (dynamo), onnxscript {onnxscript.__version__}",
        "opset": graph.model.opset_imports[""],
        "checked_with": f"onnxruntime {onnxruntime.__version__}",
        "largest_difference": difference,
    }


def _bytes_of_weights(served: ServedModel) -> int:
    return sum(tensor.nbytes for tensor in served.model.state_dict().values())


def _translated(program: ExportedProgram, served: ServedModel) -> torch.onnx.ONNXProgram:
    graph = torch.onnx.export(
        program,
        dynamo=True,
        dynamic_shapes=({name: {0: ROWS} for name in served.fields},),
        custom_translation_table={torch.ops.aten.sort.stable: _stable_sort},
        # onnxscript's rules drop the `+ 1e-12` of FuxiCTR's pooling, so that a sequence of padding gives NaN. To
        # simplify the graph is onnxruntime's work, when it loads it.
        optimize=False,
        verbose=False,
    )
    assert graph is not None  # as dynamo is set
    names = [*served.fields, *served.labels]
    values = [*graph.model.graph.inputs, *graph.model.graph.outputs]
    _make_room(graph, {*names})
    for node in graph.model.graph.all_nodes():
        node.metadata_props.clear()  # paths of this machine, and names that torch has for its own use
    for value, name in zip(values, names, strict=True):
        value.name = name
    return graph


def _stable_sort(self: Any, *, stable: bool = True, dim: int = -1, descending: bool = False) -> Any:
    """`aten::sort.stable`, which the exporter lacks: of equal values, ONNX's TopK too gives the first one first."""
    from onnxscript.function_libs.torch_lib.ops.core import aten_sort

    return aten_sort(self, dim, descending)


def _make_room(graph: torch.onnx.ONNXProgram, names: set[str]) -> None:
    """Rename what has one of these names inside of the graph: torch calls it by its operators, as `linear`."""
    inside = [value for node in graph.model.graph.all_nodes() for value in node.outputs]
    inside += graph.model.graph.initializers.values()
    taken = names | {value.name or "" for value in inside}
    for value in inside:
        if value.name in names:
            number = next(number for number in range(len(taken) + 1) if f"{value.name}_{number}" not in taken)
            value.name = f"{value.name}_{number}"
            taken.add(value.name)


def _answers(session: Any, batch: dict[str, Tensor]) -> dict[str, np.ndarray]:
    labels = [output.name for output in session.get_outputs()]
    answers = session.run(labels, {name: column.numpy() for name, column in batch.items()})
    return dict(zip(labels, answers, strict=True))
