"""Bad input to ELEC is one line that names the thing and the way out."""

import re
from pathlib import Path

import pandas
import pytest

from fuxictr_llm.__main__ import main
from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.files import cache_dir
from fuxictr_llm.config.resolve import load_experiment
from support import as_arguments, edit


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": "gian"}, "unknown teacher 'gian'; did you mean 'gain'"),
        ({"teacher": "checkpoints/shop/DCN_shop"}, r"unknown run .*'python .* --expid DCN_shop' trains it"),
        ({"h_crossfit": 1}, "h_crossfit 1: a head must leave some rows out"),
        ({"schedule": "joint", "warmup_epochs": 2}, "warmup_epochs 2 leaves nothing of 2 epochs"),
        ({"teacher": "shuffled", "schedule": "joint"}, "shuffled is a trained teacher.* set schedule: staged"),
        ({"text_fields": ["colour"]}, "'colour'.*did you mean 'color'"),
        ({"text_fields": ["user"], "text_units": "row"}, None),
        ({"inject": "bottom"}, "config key 'inject' is 'bottom'"),
        ({"alpha": -1.0}, "config key 'alpha' is -1.0"),
        ({"h_crossfit": 2, "inject_vector": "s"}, "h_crossfit has no effect on inject_vector: s"),
        ({"h_crossfit": 2}, "h_crossfit has no effect on inject_vector: joint"),
        ({"gain_backbone": "fixed", "inject": "input"}, "with inject: input cannot start .* set gain_backbone: fresh"),
        (
            {"gain_backbone": "tuned", "schedule": "joint"},
            "with schedule: joint cannot start .* set gain_backbone: fresh",
        ),
        ({"optimizer": "Rprop"}, "optimizer Rprop has no weight decay; set h_decay: 0"),
        ({"h": "noise", "teacher": "self"}, "h: noise has no effect on teacher: self"),
        ({"schedule": "joint", "teacher": "runs/x"}, "joint trains its teacher, and 'runs/x' is trained"),
        ({"value_texts": {"color": {"file": "none.csv", "key": "color", "text": "story"}}}, "none.csv"),
    ],
)
def test_bad_settings_are_one_line(run, configs, llm, changes, message, capsys):
    settings = as_arguments({**llm, "h_dim": 4, **changes})
    code = main(["run", "--config", str(configs), "--expid", "DeepFM_ELEC_shop", *settings])
    if message is None:
        assert code == 0  # ids may be named
        return
    error = capsys.readouterr().err.splitlines()[-1]
    assert code == 2 and error.startswith("error: ")
    assert re.search(message, error), error


def test_a_column_more_that_widens_the_representation_is_named_before_anything_is_computed(run):
    with pytest.raises(
        UserError, match=r"inject: input makes .* of DCNv2 28 wide instead of 24; set .*hint, or beta: 0"
    ):
        run("DCNv2_ELEC_shop", inject="input")
    assert not (cache_dir() / "text_vectors").exists()
    hinted = run("DCNv2_ELEC_shop", inject="input", representation_loss="hint")
    assert hinted.record["parameters"]["method"] == 24 * 28 + 28


def test_a_data_set_of_ids_alone_has_nothing_to_read(run, configs):
    Path("words.yaml").write_text("fields: {user: id of the user}\n", encoding="utf-8")
    edit(configs / "dataset_config.yaml", "[color, city, user]", "[user]")
    edit(
        configs / "dataset_config.yaml",
        "    - {name: tags, active: true, dtype: str, type: sequence, splitter: ^, max_len: 3}\n",
        "",
    )
    with pytest.raises(UserError, match="nothing to read"):
        run()


def test_a_run_can_teach_another_backbone_and_one_on_other_data_cannot(run, configs):
    teacher = run("DCNv2_shop")
    name = str(teacher.model.checkpoint).removesuffix(".model")
    result = run(teacher=name, beta=0.0)
    assert result.record["networks"]["teacher"]["metrics"] == teacher.record["metrics"]
    assert "encode" not in result.record["stages"]
    with pytest.raises(
        UserError, match="is 8 wide, .* set representation_loss: hint and teacher_width: 24, or beta: 0"
    ):
        run(teacher=name)
    hint = run(teacher=name, representation_loss="hint")
    assert hint.record["metrics"] != result.record["metrics"]
    raw = load_experiment("DeepFM_shop", configs).params["train_data"]
    Path(raw).write_text("\n".join(Path(raw).read_text(encoding="utf-8").splitlines()[:500]) + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"teacher '.*DCNv2_shop_\w+' was trained on data set 'shop'"):
        run(teacher=name, beta=0.0)


def test_a_split_with_one_class_is_named(run, configs):
    raw = Path(load_experiment("DeepFM_shop", configs).params["valid_data"])
    lines = raw.read_text(encoding="utf-8").splitlines()
    raw.write_text("\n".join([lines[0], *(line for line in lines[1:] if line.endswith("1"))]) + "\n", encoding="utf-8")
    with pytest.raises(UserError, match="one value only"):
        run()


@pytest.mark.parametrize("split", ["train", "valid", "test"])
@pytest.mark.parametrize("expid", ["DeepFM_ELEC_shop", "DeepFM_shop"])
def test_a_split_of_built_data_with_one_class_is_named(run, configs, split, expid):
    run("DeepFM_shop", epochs=1)
    path = Path(f"data/shop/{split}.parquet")
    rows = pandas.read_parquet(path)
    rows[rows["click"] == 1].to_parquet(path)
    Path("data/shop/build.json").unlink()  # as FuxiCTR leaves it
    edit(configs / "dataset_config.yaml", "data_format: csv", "data_format: parquet")
    for name in ("train", "valid", "test"):
        edit(configs / "dataset_config.yaml", f"{Path('raw').absolute()}/{name}.csv", f"data/shop/{name}.parquet")
    with pytest.raises(Exception, match=f"label 'click' of 'data/shop/{split}.parquet' has one value only"):
        run(expid)
