"""Whole ELEC runs on a small data set with a tiny language model."""

import pytest

from fuxictr_llm.config.resolve import load_experiment
from fuxictr_llm.experiment.preparation import prepare_run
from fuxictr_llm.experiment.run import run_experiment

SMALL = {
    "DCNv2": {"parallel_dnn_hidden_units": [8], "net_dropout": 0.1},
    "FinalMLP": {"mlp1_hidden_units": [8], "mlp2_hidden_units": [8], "num_heads": 2},
}


@pytest.fixture
def run(configs, llm, tmp_path):
    """Runs an expid on `shop`, whose rows have a text of the user and one of the item."""
    words = tmp_path / "words.yaml"
    entities = "entities: {user: {id: user, text: [city]}, item: {id: color, text: [color, tags]}}\n"
    words.write_text(words.read_text(encoding="utf-8") + entities, encoding="utf-8")

    def run_it(expid="DeepFM_ELEC_shop", seed=None, only_prepare=False, **changes):
        name = expid.partition("_")[0]
        settings = {**SMALL.get(name, {}), **changes}
        if "ELEC" in expid:
            settings = {**llm, "h_hidden": 8, "h_dim": 4, **settings}
        experiment = load_experiment(expid, configs, seed=seed, overrides=settings)
        return prepare_run(experiment, "unused") if only_prepare else run_experiment(experiment)

    return run_it
