"""Whole runs on a small data set with a tiny language model: records, caches, identity, bit-identity."""

import copy
import csv
import json
import logging
import pickle
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.files import digest_of_file
from fuxictr_llm.common.run_files import run_files
from fuxictr_llm.config.resolve import load_experiment
from fuxictr_llm.data.loader import make_loaders
from fuxictr_llm.experiment import run as experiment_module
from fuxictr_llm.experiment.preparation import prepare_data, warn_of_logloss
from fuxictr_llm.experiment.run import run_experiment
from fuxictr_llm.training.listener import Listener

OWN = Path("checkpoints/shop/DeepFM_shop")  # the folder of a run without --seed and --set


def run(configs, expid="DeepFM_shop", **changes):
    return run_experiment(load_experiment(expid, configs, **changes))


def test_predictions(result):
    return result.model.predict(make_loaders(result.run.feature_map, result.run.params, "test"))


test_predictions.__test__ = False


def record_of(name):
    return json.loads(Path(f"{run_files(OWN.parent, name)}.run.json").read_text())


def test_a_plain_run_leaves_weights_log_record_and_result_line(configs):
    result = run(configs)
    record = record_of("DeepFM_shop")
    assert {path.name for path in OWN.iterdir()} == {f"DeepFM_shop.{kind}" for kind in ("model", "log", "run.json")}
    assert record["config"]["model"] == "DeepFM" and record["config_sha256"]
    assert record["data"]["rows"] == {"train": 900, "valid": 150, "test": 150}
    assert record["data"]["sha256"]["test"] == [digest_of_file(result.record["config"]["test_data"])]
    assert set(record["metrics"]["test"]) == {"AUC", "logloss"} and 1 <= record["best_epoch"] <= 2
    assert record["stages"]["train"]["rows"] == 1800 and record["stages"]["train"]["rows_per_second"] > 0
    assert record["parameters"]["method"] == 0 < record["parameters"]["backbone"]
    assert record["peak_memory"]["process_mib"] > 0
    assert "torch" in record["versions"]
    assert record["seed"] == 7
    log = (OWN / "DeepFM_shop.log").read_text()
    last = re.findall(r"\[Metrics\] (.*)", log)[-1]
    assert last == " - ".join(f"{name}: {value:.6f}" for name, value in record["metrics"]["test"].items())
    (line,) = csv.reader(Path("my_configs.csv").read_text().splitlines())
    assert line[0].startswith(" 2") and line[2:5] == ["[exp_id] DeepFM_shop", "[dataset_id] shop", "[train] N.A."]
    assert line[6] == f"[test] {last}"
    state = torch.load(OWN / "DeepFM_shop.model", weights_only=True)
    assert all(torch.equal(value, state[name]) for name, value in result.model.state_dict().items())


def test_the_same_run_again_gives_identical_metrics_and_appends_to_the_log(configs):
    first = run(configs).record["metrics"]
    size = (OWN / "DeepFM_shop.log").stat().st_size
    assert run(configs).record["metrics"] == first
    assert (OWN / "DeepFM_shop.log").stat().st_size > 1.5 * size
    assert len(Path("my_configs.csv").read_text().splitlines()) == 2


def test_the_log_keeps_where_an_error_came_from(configs):
    with pytest.raises(UserError):
        run(configs, overrides={"use_features": ["colour"]})
    (log,) = OWN.parent.glob("*/*.log")
    assert "KeyError: 'colour'" in log.read_text() and "UserError" in log.read_text()


def test_another_seed_is_another_run(configs):
    first, other = run(configs), run(configs, seed=8)
    assert other.record["model_id"] == load_experiment("DeepFM_shop", configs, seed=8).full_id
    assert other.record["metrics"] != first.record["metrics"]
    assert record_of("DeepFM_shop")["seed"] == 7 and record_of(other.record["model_id"])["seed"] == 8


def test_files_of_other_settings_are_kept(configs):
    run(configs)
    before = (OWN / "DeepFM_shop.model").read_bytes()
    path = configs / "model_config.yaml"
    path.write_text(path.read_text().replace("hidden_units: [8]", "hidden_units: [5]"))
    again = run(configs)
    assert (OWN / "DeepFM_shop.model").read_bytes() == before
    assert again.record["model_id"].startswith("DeepFM_shop_")


def test_llactr_prepares_its_vectors_once(configs, tiny_settings, caplog):
    first = run(configs, "DeepFM_LLaCTR_shop", overrides=tiny_settings)
    notes, stages = first.record["notes"]["field_vectors"], first.record["stages"]
    assert notes["source"] == "llm" and notes["sha256"] == digest_of_file(notes["path"])
    assert notes["texts"].endswith("the train split") and notes["ssft"]["prompts"] == 4 * 3 + 3 - 3
    assert stages["tune"]["rows"] == notes["ssft"]["prompts"] and stages["encode"]["rows"] == 4
    assert first.record["parameters"]["method"] > 0
    again = run(configs, "DeepFM_LLaCTR_shop", overrides=tiny_settings)
    assert again.record["stages"]["tune"]["cached"] and again.record["metrics"] == first.record["metrics"]
    other_seed = run(configs, "DeepFM_LLaCTR_shop", overrides=tiny_settings, seed=99)
    assert other_seed.record["notes"]["field_vectors"]["sha256"] == notes["sha256"]  # seeds share the vectors
    fewer = run(configs, "DeepFM_LLaCTR_shop", overrides={**tiny_settings, "ssft_values_per_field": 2})
    assert "cached" not in fewer.record["stages"]["tune"]


def test_damaged_vectors_are_noticed_and_computed_anew(configs, tiny_settings, caplog):
    first = run(configs, "DeepFM_LLaCTR_shop", overrides=tiny_settings)
    path = Path(first.record["notes"]["field_vectors"]["path"])
    path.write_bytes(path.read_bytes()[:-4] + b"spam")
    again = run(configs, "DeepFM_LLaCTR_shop", overrides=tiny_settings)
    assert "is damaged: it is computed anew" in Path(again.model.checkpoint).with_suffix(".log").read_text()
    assert again.record["notes"]["field_vectors"]["sha256"] == first.record["notes"]["field_vectors"]["sha256"]
    assert again.record["metrics"] == first.record["metrics"]


def test_an_untuned_language_model_gives_vectors_too(configs, tiny_settings):
    result = run(configs, "DeepFM_LLaCTR_shop", overrides={**tiny_settings, "ssft_epochs": 0})
    assert "ssft" not in result.record["notes"]["field_vectors"] and "tune" not in result.record["stages"]


def test_a_given_vector_file_is_used(configs, tiny_settings):
    first = run(configs, "DeepFM_LLaCTR_shop", overrides=tiny_settings)
    path = first.record["notes"]["field_vectors"]["path"]
    given = run(configs, "DeepFM_LLaCTR_shop", overrides={"field_vectors": path})
    assert given.record["notes"]["field_vectors"]["source"] == "given"
    assert given.record["metrics"] == first.record["metrics"]


def test_both_lambdas_zero_predict_bit_identically_to_the_plain_run(configs, tiny_settings):
    plain = run(configs)
    off = run(configs, "DeepFM_LLaCTR_shop", overrides={**tiny_settings, "lambda_fre": 0, "lambda_fie": 0})
    assert (test_predictions(plain) == test_predictions(off)).all()
    assert "tune" not in off.record["stages"]
    assert "LLaCTR is off" in Path(off.model.checkpoint).with_suffix(".log").read_text()


def test_what_a_language_model_did_before_does_not_show_in_the_weights(configs, tiny_settings):
    first = run(configs, "DeepFM_LLaCTR_shop", overrides=tiny_settings)
    cached = run(configs, "DeepFM_LLaCTR_shop", overrides=tiny_settings)
    assert (test_predictions(first) == test_predictions(cached)).all()


def test_saved_weights_load_into_a_new_model(configs, tiny_settings):
    result = run(configs, "DeepFM_LLaCTR_shop", overrides=tiny_settings)
    result.run.params["seed"] = 1234
    model = experiment_module.build_model(result.run)
    model.load_weights(result.model.checkpoint)
    loader = make_loaders(result.run.feature_map, result.run.params, "test")
    assert (model.predict(loader) == test_predictions(result)).all()


def test_an_interrupted_run_leaves_the_earlier_one_whole(configs, monkeypatch):
    run(configs)
    before = {path.name: path.read_bytes() for path in OWN.iterdir() if path.suffix != ".log"}
    assert not [name for name in before if name.endswith(".checkpoint")]

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(experiment_module, "count_parameters", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(configs)
    assert len([*OWN.glob("*.checkpoint")]) == 1  # the same command goes on from it
    assert {path.name: path.read_bytes() for path in OWN.iterdir() if path.name in before} == before
    assert len(Path("my_configs.csv").read_text().splitlines()) == 1


def test_an_interrupted_run_goes_on_though_another_has_taken_its_name(configs):
    class Interrupt(Listener):
        def evaluated(self, evaluation):
            raise KeyboardInterrupt

    experiment = load_experiment("DeepFM_shop", configs, overrides={"checkpoint_minutes": 0, "learning_rate": 0.02})
    experiment = replace(experiment, changed=False)
    with pytest.raises(KeyboardInterrupt):
        run_experiment(experiment, listener=Interrupt())
    run(configs)
    assert len([*OWN.glob("*.checkpoint")]) == 1
    result = run_experiment(experiment)
    assert result.record["model_id"] == experiment.full_id and not [*OWN.glob("*.checkpoint")]
    assert "Training goes on" in Path(result.model.checkpoint).with_suffix(".log").read_text()


def test_logging_is_as_before_afterwards(configs):
    before = logging.getLogger().handlers[:]
    run(configs)
    assert logging.getLogger().handlers == before


def test_diverging_training_says_so(configs, monkeypatch):
    with pytest.raises(UserError, match=r"training diverged: predictions are NaN; lower learning_rate \(now 1e\+30\)"):
        run(
            configs,
            overrides={"learning_rate": 1e30, "batch_norm": False, "optimizer": "SGD", "max_gradient_norm": 1e38},
        )
    assert not (OWN / "DeepFM_shop.model").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gpu": 99}, r"--gpu 99: this machine has .*; --gpu -1 takes the CPU"),
        ({"overrides": {"model_root": "taken"}}, r"cannot write to 'taken/shop/DeepFM_shop_[0-9a-f]{8}': .*name another folder with --set model_root"),
        ({"overrides": {"data_root": "taken"}}, r"cannot write to 'taken'"),
        ({"overrides": {"hidden_activations": "reluu"}}, "cannot be built with these settings"),
        ({"overrides": {"optimizer": "adamm"}}, "config key 'optimizer' is 'adamm' .* did you mean 'Adam'"),
        ({"overrides": {"loss": "bcee"}}, "config key 'loss' is 'bcee' .* did you mean 'bce'"),
        ({"overrides": {"metrics": ["AUCC"]}}, r"'metrics\[0\]' is 'AUCC' .*should match pattern '\^\(AUC\|logloss"),
        ({"overrides": {"monitor": "AUCC"}}, "'monitor' is 'AUCC'"),
        ({"overrides": {"metrics": ["gAUC"]}}, "metric 'gAUC' needs group_id"),
        ({"overrides": {"valid_data": None}}, "names no valid_data"),
        ({"overrides": {"eval_steps": 99}}, "eval_steps 99 is more than all 16 steps"),
        ({"overrides": {"group_id": "user_group"}}, "unknown column 'user_group' in group_id"),
        ({"overrides": {"hidden_units": [-5]}}, "cannot be built with these settings"),
        ({"overrides": {"net_regularizer": "l2"}}, "'net_regularizer' is 'l2'"),
        ({"overrides": {"seed": 2**32}}, "'seed' is 4294967296"),
        ({"expid": "FM_shop", "overrides": {"net_regularizer": 0.1}}, "unknown config key 'net_regularizer' .* did you mean 'regularizer'"),
        ({"overrides": {"use_features": ["colour"]}}, "unknown column 'colour' in use_features .* did you mean 'color'"),
    ],
)  # fmt: skip
def test_bad_settings_are_one_line_and_leave_nothing(configs, changes, message):
    Path("taken").write_text("a file where a folder should be")
    with pytest.raises(UserError, match=message):
        run(configs, **changes)
    assert Path("taken").read_text() == "a file where a folder should be"
    assert not list(Path().glob("checkpoints/shop/*/*.model")) and not Path("my_configs.csv").exists()


@pytest.mark.parametrize(("batch_size", "few"), [(256, True), (64, False)])
def test_few_batches_are_warned_of(configs, batch_size, few):
    """3,000 rows with the batch_size of Criteo stop after 3 steps."""
    result = run(configs, "FM_shop", overrides={"batch_size": batch_size})
    log = Path(result.model.checkpoint).with_suffix(".log").read_text()
    warning = "An epoch has 4 batches (900 rows, batch_size 256): the model may have learnt little"
    assert (warning in log) == few == ("set a batch_size of 16, say" in log)


def test_gauc_by_a_meta_column(configs):
    path = configs / "dataset_config.yaml"
    extra = "    - {name: user_group, active: true, dtype: str, type: meta, preprocess: copy_from(user)}\n"
    path.write_text(path.read_text().replace("    label_col", extra + "    label_col"))
    result = run(configs, overrides={"group_id": "user_group", "metrics": ["gAUC", "AUC"]})
    assert 0 < result.record["metrics"]["test"]["gAUC"] < 1


def test_the_trained_model_can_be_copied_and_pickled(configs, tiny_settings):
    for expid, changes in (("DeepFM_shop", {}), ("DeepFM_LLaCTR_shop", {"overrides": tiny_settings})):
        result = run(configs, expid, **changes)
        for twin in (copy.deepcopy(result.model), pickle.loads(pickle.dumps(result.model))):
            with torch.no_grad():
                next(twin.parameters()).add_(1.0)
            twin.save_weights("twin.model")
            saved, name = torch.load("twin.model", weights_only=True), next(iter(dict(twin.named_parameters())))
            assert torch.equal(saved[name], twin.state_dict()[name])
            assert not torch.equal(saved[name], result.model.state_dict()[name])


def test_two_runs_of_one_name_at_once_keep_their_own_weights(configs, tmp_path, monkeypatch):
    """The second one, with other settings, starts and ends while the first one trains."""
    other = shutil.copytree(configs, tmp_path / "other_configs")
    path = other / "model_config.yaml"
    path.write_text(path.read_text().replace("learning_rate: 0.01", "learning_rate: 0.03"))
    fit, nested = experiment_module.fit, []

    def fit_beside_another(*args, **options):
        if not nested:
            nested.append(None)
            nested[0] = run(other)
        return fit(*args, **options)

    monkeypatch.setattr(experiment_module, "fit", fit_beside_another)
    first = run(configs)
    assert nested[0].record["model_id"] == "DeepFM_shop"
    assert first.record["model_id"] == load_experiment("DeepFM_shop", configs).full_id
    for result in (first, nested[0]):
        saved = torch.load(result.model.checkpoint, weights_only=True)
        assert all(torch.equal(value, saved[name]) for name, value in result.model.state_dict().items())


@pytest.mark.parametrize("backbone", ["FmFM", "FwFM", "WuKong", "DeepFM"])
def test_fewer_features_run_with_and_without_a_method(configs, tiny_settings, backbone):
    changes = {"use_features": ["color", "tags"], "mlp_batch_norm": True} if backbone == "WuKong" else {}
    changes = {"use_features": ["color", "tags"], **changes}
    run(configs, f"{backbone}_shop", overrides=changes)
    result = run(configs, f"{backbone}_LLaCTR_shop", overrides={**changes, **tiny_settings})
    assert result.model.enhancement.anatomy.fields == ("color", "tags")


def test_an_integer_regularizer_is_one(configs):
    """FuxiCTR silently ignores an integer."""
    experiment = load_experiment("DeepFM_shop", configs, overrides={"embedding_regularizer": 1})
    assert experiment.params["embedding_regularizer"] == 1.0 and isinstance(
        experiment.params["embedding_regularizer"], float
    )


def test_a_run_whose_data_was_built_anew_until_its_last_batch_is_none(configs, monkeypatch):
    """Only what does not heed the lock can do that, as this process itself."""
    fit = experiment_module.fit

    def fit_and_build_anew(*args, **options):
        epoch = fit(*args, **options)
        changes = {"min_categr_count": 26}
        prepare_data(load_experiment("DeepFM_shop", configs, overrides=changes), "unused")
        return epoch

    monkeypatch.setattr(experiment_module, "fit", fit_and_build_anew)
    with pytest.raises(UserError, match=r"data/shop' was replaced while this run used it; .* are kept in"):
        run(configs)
    assert not list(Path("checkpoints").rglob("*.run.json"))


@pytest.mark.parametrize(
    ("logloss", "columns", "said"),
    [
        (11.4, [{"name": ["age", "price"], "type": "numeric", "active": True}], "give 'age', 'price' a normalizer"),
        (11.4, [{"name": "age", "type": "numeric", "active": True, "normalizer": "StandardScaler"}], "for every row"),
        (11.4, None, "for every row"),
        (0.7, None, None),
    ],
)
def test_probabilities_worse_than_one_half_are_warned_of(logloss, columns, said, caplog):
    warn_of_logloss({"logloss": logloss}, {"feature_cols": columns})
    assert (said in caplog.text) if said else not caplog.text
