"""A byte that changed in a run's weights is found where they are used again."""

from pathlib import Path

import pytest
import torch

from fuxictr_llm import export_run, load_experiment, run_experiment
from fuxictr_llm.common import files
from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.files import read_json, write_json
from fuxictr_llm.serving.export import load_network
from support import flip_a_byte


def test_a_changed_byte_in_a_runs_weights_is_found_at_export(configs, monkeypatch):
    monkeypatch.setattr(files, "REMEMBERED_ABOVE", 1)  # as if they were large: an export reads them all the same
    result = run_experiment(load_experiment("DeepFM_shop", configs, overrides={"epochs": 1}))
    run = result.model.checkpoint.removesuffix(".model")
    before = Path(f"{run}.model").read_bytes()
    export_run(run, "served")
    flip_a_byte(f"{run}.model")
    assert torch.load(f"{run}.model", weights_only=True)  # torch does not notice
    for use in (lambda: export_run(run, "again"), lambda: load_network(run)):
        with pytest.raises(
            UserError, match=r"DeepFM_shop.*.model' is damaged or of another run .* run the experiment again"
        ):
            use()
    assert not Path("again").exists()
    Path(f"{run}.model").write_bytes(before)
    export_run(run, "again")
    assert Path("again/model.safetensors").read_bytes() == Path("served/model.safetensors").read_bytes()
    # A record of an earlier version does not say what they were.
    record = read_json(f"{run}.run.json")
    write_json(f"{run}.run.json", {**record, "seed": 8})
    with pytest.raises(UserError, match=r"run.json' is damaged \(its record_sha256 is another\); run the experiment"):
        export_run(run, "again")
    del record["weights_sha256"], record["record_sha256"]
    write_json(f"{run}.run.json", record)
    export_run(run, "again")
