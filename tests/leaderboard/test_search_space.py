"""Search spaces: ours, FuxiCTR's, and what does not fit the arms."""

from pathlib import Path

import pytest

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.config.sources import packaged_configs
from fuxictr_llm.leaderboard.plan.plan import Plan
from fuxictr_llm.leaderboard.run.space import Range, Tuning, read_space


def read(text, plan):
    Path("space.yaml").write_text(text)
    return read_space("space.yaml", plan)


def test_keys_are_of_all_arms_or_of_a_backbone_or_method(plan):
    asked = plan(["DeepFM", "LR"], ["plain", "LLaCTR"], controls=True)
    space = read(
        "learning_rate: {low: 1e-4, high: 1e-2, log: true}\nDeepFM: {hidden_units: [[8], [4, 4]]}\n"
        "LLaCTR: {lambda_fre: [0.1, 0.2]}\n",
        asked,
    )
    keys = {str(arm): sorted(space.for_arm(arm)) for arm in asked.arms}
    assert keys["DeepFM plain on shop"] == ["hidden_units", "learning_rate"]
    assert keys["LR LLaCTR random on shop"] == ["lambda_fre", "learning_rate"]
    assert space.common["learning_rate"] == Range(1e-4, 1e-2, log=True)


@pytest.mark.parametrize(
    ("backbones", "dataset", "file", "sizes"),
    [
        (["DeepFM"], "movielens100k", "space_movielens100k.yaml", {1, 3, 6}),
        (["DeepFM", "DCNv2", "FinalMLP", "FwFM"], "xwines_time", "space.yaml", {1, 3, 6}),
    ],
)
def test_the_space_of_a_packaged_table_fits_its_plan(backbones, dataset, file, sizes):
    methods = ["plain", "LLMEmb", "LLaCTR", "ELEC"]
    table, tuning = Plan.crossed(backbones, [dataset], methods, controls=True), Tuning(1, on="DeepFM")
    space = read_space(packaged_configs() / "leaderboard" / file, table, tuning)
    searched = tuning.searched(table).arms
    assert len(searched) == 9 and {len(space.for_arm(arm)) for arm in searched} == sizes


def test_fuxictrs_tuner_file_is_read(plan, caplog):
    caplog.set_level("INFO")
    space = read(
        "base_config: ../config\nbase_expid: FM_default\ndataset_id: tiny\ntuner_space:\n    model_root: ./x\n"
        "    seed: 2019\n    learning_rate: [0.1, 0.2]\n    batch_size: 64\n    metrics: [[AUC, logloss]]\n"
        "    monitor: {AUC: 1, logloss: -1}\n",
        plan(["FM"]),
    )
    assert space.common == {
        "learning_rate": (0.1, 0.2),
        "batch_size": (64,),
        "metrics": (["AUC", "logloss"],),
        "monitor": ({"AUC": 1, "logloss": -1},),
    }
    assert "not: base_config, base_expid, dataset_id, model_root, seed" in caplog.text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "names nothing to tune"),
        ("learning_rate: 0.1", "must be a list of values, or low and high"),
        ("learning_rate: [0.1, 0.1]", "must list different values"),
        ("learning_rate: {low: 1, high: 1}", "low must be below high"),
        ("learning_rate: {low: 0, high: 1, log: true}", "low must be below high, and above 0"),
        ("learning_rate: {low: a, high: 1}", "must be numbers"),
        ("learning_rate: {low: 1, top: 2}", "must have low, high"),
        ("seed: [1, 2]", "every arm runs at the plan's seeds"),
        ("min_categr_count: [1, 2]", "of the data set"),
        ("lerning_rate: [0.1, 0.2]", "FM plain on shop: unknown config key 'lerning_rate'.*'learning_rate'"),
        ("learning_rate: [0.1, -0.2]", "config key 'learning_rate' is -0.2"),
        ("batch_size: {low: 0, high: 8}", "config key 'batch_size' is 0"),
        ("lambda_fre: [0.1]", "FM plain on shop: unknown config key 'lambda_fre'"),
        ("LLaCTR: {lambda_fre: [0.1]}", "nothing for FM plain on shop"),
        ("LLaCTL: {lambda_fre: [0.1]}", "unknown section 'LLaCTL'.*'LLaCTR'"),
        (
            "learning_rate: [0.1]\nLLaCTR: {field_vectors: [llm, random]}",
            "'field_vectors', which is what makes FM LLaCTR",
        ),
        ("epochs: [1, 2]", "'epochs' is given with --set"),
        ("tuner_space: [1]", "must map keys to values"),
    ],
)
def test_what_does_not_fit_is_one_line_before_anything_runs(text, message, plan):
    with pytest.raises(UserError, match=message) as error:
        read(text, plan(["FM"], ["plain", "LLaCTR"], controls=True))
    assert "\n" not in str(error.value)
