"""What serving a run takes is that of its export, and measuring it is no other run."""

from pathlib import Path

from fuxictr_llm.config.resolve import load_experiment
from fuxictr_llm.experiment import record as records
from fuxictr_llm.experiment.run import run_experiment
from fuxictr_llm.serving.cost import BATCH_ROWS, THREADS
from fuxictr_llm.serving.export import export_run
from fuxictr_llm.serving.load import load_model


def run(configs, expid="FM_shop", **changes):
    experiment = load_experiment(expid, configs, overrides={"epochs": 1, "measure_serving": True, **changes})
    return experiment, run_experiment(experiment).record


def test_the_record_has_what_the_export_takes(configs, tmp_path):
    measured, record = run(configs)
    off, without = run(configs, measure_serving=False)
    assert measured.sha256 == off.sha256 and "served" not in without
    assert record["metrics"] == without["metrics"]
    served = load_model(export_run(f"checkpoints/shop/{without['model_id']}", tmp_path / "export"))
    facts = record["served"]
    assert facts["parameters"] == sum(weight.numel() for weight in served.model.parameters())
    assert facts["milliseconds"] > 0 and (facts["batch_rows"], facts["threads"]) == (BATCH_ROWS, THREADS)


def test_what_remains_of_a_method_is_served(configs):
    _, plain = run(configs)
    _, folded = run(configs, "FM_LLaCTR_shop", field_vectors="identity")
    assert folded["served"]["parameters"] - plain["served"]["parameters"] == 6  # a weight for each pair of four fields
    assert folded["parameters"]["method"] > 6


def test_a_model_that_cannot_be_served_is_a_result_all_the_same(configs, monkeypatch):
    def broken(*_):
        raise ValueError("no fold")

    monkeypatch.setattr(records, "cost_of_serving", broken)
    record = run(configs)[1]
    log = Path(f"checkpoints/shop/{record['model_id']}/{record['model_id']}.log").read_text(encoding="utf-8")
    assert record["served"] is None and f"what serving {record['model_id']} takes is not measured: no fold" in log
