"""The rows of model_config/bars_*.yaml: every one resolves, and to what BARS published."""

import functools
from pathlib import Path

import pytest

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.formats import read_yaml
from fuxictr_llm.config import sources as config_sources
from fuxictr_llm.config.resolve import load_experiment
from fuxictr_llm.host.checkout import current_checkout

# The rows of bars_zoo are there with --zoo=DIR alone, as their models are.
FILES = [
    pytest.param(path, id=path.stem, marks=pytest.mark.zoo if path.stem == "bars_zoo" else ())
    for path in sorted(Path(config_sources.packaged_configs(), "model_config").glob("bars_*.yaml"))
    if path.stem != "bars_zoo" or current_checkout()
]
# Hard facts of the published file (BARS's expids: DCNv2_criteo_x1_001_28c60688 and so on).
PUBLISHED = {
    "DCNv2_criteo_x1": {"embedding_dim": 10, "batch_size": 4096, "seed": 2021, "early_stop_patience": 2}
    | {"parallel_dnn_hidden_units": [500, 500, 500], "embedding_regularizer": 1e-5, "batch_norm": False},
    "DeepFM_criteo_x1": {"embedding_dim": 10, "hidden_units": [400, 400, 400], "net_dropout": 0.1, "batch_norm": True},
    "CrossNet-V2_criteo_x1": {"model": "DCNv2", "model_structure": "crossnet_only", "num_cross_layers": 5},
    "FinalMLP_criteo_x4_001": {"batch_size": 10000, "mlp2_hidden_units": [500], "monitor": "AUC", "seed": 2019},
    "FwFM_criteo_x4_001": {"linear_type": "LW", "regularizer": 5e-6, "monitor": {"AUC": 1, "logloss": -1}},
    "AFN_criteo_x4_002": {"embedding_dim": 40, "batch_size": 2000, "logarithmic_neurons": 1500},
    "AFM_criteo_x4_002": {"attention_dropout": [0.3, 0], "embedding_regularizer": 1e-6, "early_stop_patience": 3},
    "FmFM_amazonelectronics_x1": {"group_id": "user_id", "seed": 2022, "learning_rate": 5e-4, "regularizer": 5e-6},
    "xDeepFM_kkbox_x1": {"cin_hidden_units": [16, 16], "dnn_activations": "relu", "dnn_hidden_units": [5000, 5000]},
    "HOFM_kkbox_x1": {"embedding_dim": [128, 32], "order": 3},
    "CrossNet_criteo_x1": {"model": "DCN", "dnn_hidden_units": [], "num_cross_layers": 12},
}


@pytest.fixture
def load(monkeypatch):
    """`load_experiment` that reads each file once."""
    monkeypatch.setattr(config_sources, "read_yaml", functools.cache(read_yaml))
    return load_experiment


def rows_of(path: Path) -> dict[str, str]:
    """Expid -> backbone."""
    return {name: row.get("model") or name.partition("_")[0] for name, row in read_yaml(path).items()}


@pytest.mark.parametrize("path", FILES)
def test_every_row_resolves_with_every_key_of_it_and_none_unknown(path, load):
    rows, entries = rows_of(path), read_yaml(path)
    assert rows
    for expid, backbone in rows.items():
        experiment = load(expid)
        assert (experiment.expid, experiment.params["model"]) == (expid, backbone)
        assert not experiment.without_effect and not experiment.changed
        # Rows of BARS's other names stand on the backbone's own row, if there is one: nothing of it may shine through.
        assert {key: experiment.params[key] for key in entries[expid]} == entries[expid]
        own = entries.get(f"{backbone}_{experiment.params['dataset_id']}", {})
        assert own.keys() <= entries[expid].keys()


@pytest.mark.parametrize("expid", PUBLISHED)
def test_rows_are_what_was_published(expid, load):
    params = load(expid).params
    assert {key: params[key] for key in PUBLISHED[expid]} == PUBLISHED[expid]


def test_a_row_of_a_model_that_only_a_checkout_has_says_so(load):
    with pytest.raises(UserError, match="unknown backbone 'HFM' in expid 'HFM\\+_avazu_x1'; .* --zoo DIR adds"):
        load("HFM+_avazu_x1")


def test_a_tuned_row_takes_a_method(load):
    params = load("DeepFM_LLaCTR_criteo_x1").params
    assert (params["method"], params["embedding_dim"], params["seed"]) == ("LLaCTR", 10, 2021)
