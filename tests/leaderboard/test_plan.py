"""Plans: what they run, what makes two runs the same, and that nothing unknown gets past them."""

from dataclasses import replace
from pathlib import Path

import pytest

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.formats import dump_yaml
from fuxictr_llm.leaderboard.plan.arms import run_key
from fuxictr_llm.leaderboard.plan.plan import Arm, Plan, seeds_of
from fuxictr_llm.leaderboard.run.tuning import trial_plan
from support import edit

YAML = """
backbones: [DeepFM]
methods: [plain, LLaCTR]
datasets: [shop]
seeds: 2
set: {epochs: 1}
arms:
- {backbone: FM, method: ELEC, control: noise, dataset: shop, settings: {alpha: 0.5}}
"""


@pytest.fixture
def plan_file(configs):
    Path("plan.yaml").write_text(f"{YAML}config: {configs}\n", encoding="utf-8")
    return Path("plan.yaml")


def test_controls_follow_their_method_and_are_drawn_anew_for_each_seed(plan):
    made = plan(["FM"], ["plain", "LLMEmb", "LLaCTR", "ELEC"], controls=True)
    labels = ["plain", "LLMEmb", "LLMEmb shuffled", "LLaCTR", "LLaCTR random", "LLaCTR shuffled"]
    assert [arm.label for arm in made.arms] == [*labels, "ELEC", "ELEC self", "ELEC noise"]
    params = {(run.arm.label, run.seed): run.experiment.params for run in made.runs()}
    assert len({run.key for run in made.runs()}) == len(made.runs()) == 18
    assert params["LLaCTR random", 2]["field_vectors"] == "random" and params["ELEC self", 1]["teacher"] == "self"
    assert [params["LLaCTR random", seed]["control_seed"] for seed in (1, 2)] == [1, 2]
    assert params["LLaCTR", 2]["control_seed"] == params["LLaCTR", 1]["control_seed"]
    works = {run.arm.label: run.language_model for run in made.runs()}
    assert works["plain"] is None and works["LLaCTR"] == works["LLaCTR random"] == works["LLaCTR shuffled"]
    assert len(set(works.values())) == 4
    assert all(of["num_threads"] == 1 and of["epochs"] == 1 for of in params.values())


def test_one_control_a_method_is_the_first_of_those_that_are_named(plan):
    made = plan(["FM"], ["plain", "LLMEmb", "LLaCTR", "ELEC"], controls=["shuffled", "noise"])
    assert [arm.label for arm in made.arms if arm.control] == ["LLMEmb shuffled", "LLaCTR shuffled", "ELEC noise"]
    with pytest.raises(UserError, match=r"unknown control 'shuffled' in method 'ELEC'; known: noise, self"):
        plan(["FM"], ["LLaCTR", "ELEC"], controls=["shuffled"])
    with pytest.raises(UserError, match=r"unknown control 'nose' in the methods of the plan; did you mean 'noise'\?"):
        plan(["FM"], ["LLaCTR", "ELEC"], controls=["shuffled", "self", "nose"])


def test_controls_of_unseen_values_run_where_these_get_embeddings(plan, configs):
    made = plan(["FM"], ["plain", "LLMEmb"], controls=True, cold_values="words")
    labels = ["plain", "LLMEmb", "LLMEmb shuffled", "LLMEmb cold_mean", "LLMEmb cold_shuffled"]
    assert [arm.label for arm in made.arms] == labels
    asked = {run.arm.label: run.experiment.params.get("cold_values") for run in made.runs()}
    assert list(asked.values()) == [None, "words", "words", "mean", "shuffled"]
    assert len({run.key for run in made.runs()}) == len(made.runs())
    (configs / "method_config" / "LLMEmb.yaml").write_text("LLMEmb_shop: {cold_values: words}\n")
    assert [arm.label for arm in plan(["FM"], ["plain", "LLMEmb"], controls=True).arms] == labels
    with pytest.raises(UserError, match="cold_values: mean makes it the control 'cold_mean'; leave it out"):
        plan(["FM"], ["LLMEmb"], cold_values="mean")


def test_a_setting_goes_to_the_arms_that_have_it(plan):
    made = plan(["FM", "DeepFM"], ["plain", "LLaCTR"], seeds=[1], lambda_fre=0.5, hidden_units=[4], num_threads=2)
    params = {(run.arm.backbone, run.arm.label): run.experiment.params for run in made.runs()}
    assert ["lambda_fre" in of for of in params.values()] == [False, True, False, True]
    assert params["DeepFM", "plain"]["hidden_units"] == [4] and "hidden_units" not in params["FM", "plain"]
    assert all(of["num_threads"] == 2 for of in params.values())


def test_a_setting_goes_to_arms_that_have_it_by_another_setting(plan):
    specs = [{"name": "color", "pretrained_emb": "llm"}]
    made = plan(["FM"], ["plain", "LLaCTR"], feature_specs=specs, language_model="some/model")
    assert {run.experiment.params["language_model"] for run in made.runs()} == {"some/model"}


def test_a_constructors_own_name_of_a_setting_is_no_error_beside_others(plan):
    made = plan(["FM", "DeepFM"], seeds=[1], embedding_regularizer=1e-4)
    assert [run.experiment.params.get("embedding_regularizer") for run in made.runs()] == [None, 1e-4]
    with pytest.raises(UserError, match="unknown config key 'embedding_regularizer'.*did you mean 'regularizer'"):
        plan(["FM"], embedding_regularizer=1e-4)


def labels(configs, **entries):
    with (configs / "model_config.yaml").open("a", encoding="utf-8") as file:
        file.write(dump_yaml(entries))


def test_a_label_keeps_its_settings_in_every_form_of_a_plan(configs, plan):
    labels(configs, DeepFM_tuned={"model": "DeepFM", "dataset_id": "shop", "hidden_units": [77]})
    for made in (
        Plan.crossed(["DeepFM"], ["tuned"], config=str(configs)),
        Plan.crossed(["DeepFM"], ["tuned"], config=str(configs), overrides={"epochs": 1}),
        trial_plan(Plan.crossed(["DeepFM"], ["tuned"], config=str(configs)), [{"learning_rate": 0.1}]),
    ):
        Path("again.yaml").write_text(made.to_yaml(), encoding="utf-8")
        for run in (*made.runs(), *Plan.read("again.yaml").runs()):
            assert run.experiment.params["hidden_units"] == [77] and run.experiment.params["dataset_id"] == "shop"
            assert str(run.arm) == "DeepFM plain on tuned"


@pytest.mark.parametrize(
    ("expid", "entry", "problem"),
    [
        ("DeepFM_best", {"model": "DeepFM", "method": "LLaCTR"}, "method: LLaCTR, which the table would call plain"),
        ("FM_best", {"model": "DeepFM"}, "model: DeepFM, which the table would call FM"),
    ],
)
def test_a_label_of_something_else_than_it_says_is_refused(configs, expid, entry, problem):
    labels(configs, **{expid: {**entry, "dataset_id": "shop"}})
    backbone, _, name = expid.partition("_")
    with pytest.raises(UserError, match=f"{backbone} plain on best: expid '{expid}' has {problem}; rename it"):
        Plan.crossed([backbone], [name], config=str(configs))


def test_a_key_follows_what_is_computed_and_not_where(plan):
    params = plan().runs()[0].experiment.params
    key = run_key(params)
    for same in ({"model_root": "x"}, {"data_root": "y"}, {"train_data": "z.csv"}, {"gpu": 0}, {"pictures": True}):
        assert run_key({**params, **same}) == key
    for other in ({"seed": 9}, {"test_data": None}, {"num_threads": 2}, {"learning_rate": 0.1}):
        assert run_key({**params, **other}) != key


def test_a_saved_plan_is_the_same_plan(plan_file):
    made = Plan.read(plan_file)
    assert [str(arm) for arm in made.arms] == ["DeepFM plain on shop", "DeepFM LLaCTR on shop", "FM ELEC noise on shop"]
    assert made.arms[2].settings == {"h": "noise", "alpha": 0.5} and made.seeds == [1, 2]
    plan_file.write_text(made.to_yaml(), encoding="utf-8")
    assert Plan.read(plan_file) == replace(made, seeds=[1, 2]) and Plan.read(plan_file).sha256 == made.sha256


def test_a_setting_that_is_null_or_false_is_saved(configs, plan_file):
    settings = {"net_regularizer": None, "batch_norm": False}
    made = Plan([Arm("DeepFM", "shop", settings=settings)], config=str(configs))
    plan_file.write_text(made.to_yaml(), encoding="utf-8")
    assert Plan.read(plan_file).arms[0].settings == settings


def test_without_seeds_each_arm_has_that_of_its_config(configs):
    (run,) = Plan([Arm("FM", "shop")], config=str(configs)).runs()
    assert run.seed == 7
    assert seeds_of(3) == [1, 2, 3]
    assert seeds_of([5]) == [5]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbones": ["DeepFN"]}, "unknown backbone 'DeepFN' in expid 'DeepFN_shop'; did you mean 'DeepFM'"),
        ({"methods": ["LLaCTRR"]}, "unknown method 'LLaCTRR' in expid 'FM_LLaCTRR_shop'; did you mean 'LLaCTR'"),
        ({"methods": [""]}, "unknown method ''; known: CTRL, ELEC, KAR, LLMEmb, LLMFeature, LLaCTR, plain"),
        ({"methods": ["plian"]}, "unknown method 'plian'; did you mean 'plain'"),
        ({"backbones": []}, "the plan names no backbone"),
        ({"backbones": ["FM", "FM"]}, "backbone 'FM' is given twice"),
        ({"seeds": [3, 3]}, "seed '3' is given twice"),
        ({"epoch": 3}, "FM plain on shop: unknown config key 'epoch'"),
        ({"lambda_fre": 0.1}, "FM plain on shop: unknown config key 'lambda_fre'"),
        ({"epochs": "many"}, "FM plain on shop: config key 'epochs' is 'many'"),
        (
            {"methods": ["plain", "LLaCTR"], "field_vectors": "random"},
            "FM LLaCTR on shop: field_vectors: random makes it the control 'random'; leave it out",
        ),
        ({"seed": 3}, "seed cannot be changed with --set; give --seeds"),
        ({"seeds": [-1]}, "config key 'seed' is -1 (int): input should be greater than or equal to 0"),
    ],
)
def test_what_is_unknown_or_given_twice_is_an_error(plan, changes, message):
    with pytest.raises(UserError) as error:
        plan(**changes)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seeds: 2", "sedes: 2", "unknown key 'sedes' in 'plan.yaml'; did you mean 'seeds'"),
        ("seeds: 2", "seeds: [1, -1]", '[1]" is -1 (int): input should be greater than or equal to 0'),
        ("seeds: 2", "seeds: [4, 4]", "seed '4' is given twice"),
        ("[shop]", "[shpo]", "unknown data set 'shpo' in expid 'DeepFM_shpo'; did you mean 'shop'"),
        (
            "control: noise",
            "control: nose",
            "unknown control 'nose' in an arm of 'plan.yaml' with the method ELEC; did",
        ),
        ("backbone: FM, ", "", "an arm of 'plan.yaml' lacks 'backbone'"),
        ("backbone: FM", "backbones: FM", "unknown key 'backbones' in an arm of 'plan.yaml'"),
        ("alpha: 0.5", "alpa: 0.5", "FM ELEC noise on shop: unknown config key 'alpa'"),
        ("arms:", "arms:\n- {backbone: DeepFM, dataset: shop}", "arm 'DeepFM plain on shop' is given twice"),
        ("alpha: 0.5", "h: llm", "FM ELEC noise on shop: h: llm is not the control 'noise'; leave it out"),
        ("alpha: 0.5", "seed: 5", "FM ELEC noise on shop: seed is no setting of an arm"),
        ("alpha: 0.5", "min_categr_count: 5", "would build 'shop' from another min_categr_count each"),
        ("alpha: 0.5", "prepare_split: time", "would build 'shop' from another prepare_split each"),
        ("alpha: 0.5", "feature_processor: criteo", "would build 'shop' from another feature_processor each"),
    ],
)
def test_a_plan_file_is_strict(plan_file, old, new, message):
    edit(plan_file, old, new)
    with pytest.raises(UserError) as error:
        Plan.read(plan_file)
    assert message in str(error.value)


def test_splits_are_data_sets_of_their_own_and_come_back_from_a_file(plan):
    made = replace(plan(["FM"], ["plain"]), splits=3)
    runs = made.runs()
    assert [run.repeat for run in runs] == [(split, seed) for split in (1, 2, 3) for seed in (1, 2)]
    assert len({run.key for run in runs}) == 6 and len({run.data_set for run in runs}) == 3
    assert runs[0].experiment.params["dataset_id"] == "shop_random1of3" and str(runs[-1]).endswith("split 3, seed 2")
    Path("again.yaml").write_text(made.to_yaml(), encoding="utf-8")
    again = Plan.read("again.yaml")
    assert (again.sha256, again.splits) == (made.sha256, 3)
    assert [run.split for run in trial_plan(made, [{}]).runs()] == [0]
    for changes, message in (
        ({"splits": 1}, "--splits 1 is no number of splits"),
        ({"split_by": "time"}, "--split-by time needs --splits K"),
        ({"splits": 3, "split_by": "time"}, "'shop' has no time stamps for rolling splits"),
    ):
        with pytest.raises(UserError, match=message):
            replace(plan(["FM"], ["plain"]), **changes)
