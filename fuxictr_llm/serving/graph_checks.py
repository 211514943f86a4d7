"""Whether a model class can be exported as ONNX, plain and with each method: tried on tiny data, for a zoo's table."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from fuxictr.pytorch.models import BaseModel

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.files import write_json
from fuxictr_llm.common.run_files import RECORD
from fuxictr_llm.config.origins import origin_of
from fuxictr_llm.diagnosis.doctor import Finding, look_at, quiet, run_check
from fuxictr_llm.diagnosis.tiny import TinyCase, tiny_case
from fuxictr_llm.diagnosis.zoo_table import GRAPH, ZooRow
from fuxictr_llm.enhancement.base import NotTried
from fuxictr_llm.enhancement.model import added_columns_of, enhance
from fuxictr_llm.host.columns import describe_feature_map
from fuxictr_llm.registry import find_backbone, find_method
from fuxictr_llm.serving.export import export_run

AFFECTS_RESULTS = False  # see common/code_digest.py

PLAIN = "plain"


@dataclass(frozen=True)
class KeptCase(TinyCase):
    """A case that keeps what was trained on it.

    Attributes:
        models: the trained models, in order.
    """

    models: list[BaseModel] = field(default_factory=list)

    def trained(self, model: BaseModel, batches: list[Any] | None = None) -> BaseModel:
        self.models.append(super().trained(model, batches))
        return model


def look_with_graph(name: str, methods: Sequence[str]) -> ZooRow:
    """The row of a backbone as `look_at` makes it, and `GRAPH` among its methods."""
    row = look_at(name, methods)
    try:
        with quiet():
            case = tiny_case(find_backbone(name))
    except UserError as error:
        return replace(row, methods={**row.methods, GRAPH: str(error)})
    return replace(row, methods={**row.methods, GRAPH: cell_of(graphs_of(case, methods))})


def graphs_of(case: TinyCase, methods: Sequence[str]) -> dict[str, Finding]:
    """What came of exporting the class as ONNX: plain, and with each method, trained as the method's own check does."""
    findings = {PLAIN: run_check(_export_plain, case)}
    for method in methods:
        findings[find_method(method).name] = run_check(lambda case: _export_with(case, method), case)  # noqa: B023
    return findings


def cell_of(findings: Mapping[str, Finding]) -> str:
    """What the table says: `works`, `works without ...`, or why it does not work."""
    without = {name: finding.text for name, finding in findings.items() if finding.outcome != "passed"}
    if not without:
        return "works"
    reasons = dict.fromkeys(without.values())
    if len(without) == len(findings) and len(reasons) == 1:
        return next(iter(reasons))
    return (
        f"works without {', '.join(without)}: {'; '.join(reasons)}"
        if len(without) < len(findings)
        else "; ".join(reasons)
    )


def _export_plain(case: TinyCase) -> str:
    return _exported(case, case.trained(case.build()), None)


def _export_with(case: TinyCase, method: str) -> str:
    cls = find_method(method).model_cls
    kept = KeptCase(case.cls, case.feature_map, case.settings, case.left_out, case.is_long)
    cls.self_check(kept)
    models = [model for model in kept.models if type(model) is enhance(case.cls, cls)]
    if not models:
        raise NotTried("the method's self_check() trains no model")
    return _exported(case, models[-1], method)


def _exported(case: TinyCase, model: BaseModel, method: str | None) -> str:
    """Save the model as a run, and export that."""
    if case.is_long:
        raise UserError("its batches are the tuples of FuxiCTR's LongCTR, which no export takes")
    config = getattr(getattr(model, "enhancement", None), "config", None)
    origin = origin_of(case.cls)
    settings = {**case.settings, **(asdict(config) if config else {}), "model": origin.name, "method": method}
    described, added = describe_feature_map(model.feature_map), added_columns_of(model)
    described["features"] = {name: spec for name, spec in described["features"].items() if name not in added}
    record = {
        "config": settings,
        "config_sha256": "",
        "feature_map": described,
        "backbone": origin.record(),
        "added_columns": added,
    }
    with tempfile.TemporaryDirectory() as folder:
        model.save_weights(Path(folder) / "tiny.model")
        write_json(Path(folder) / f"tiny{RECORD}", record)
        export_run(Path(folder) / "tiny", Path(folder) / "exported", ["onnx"])
    return "works"
