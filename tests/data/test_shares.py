"""`share_embedding` of a column that FuxiCTR has not seen, or cannot share, is one line; the order needed is said."""

import pytest
from raw_tables import built, column, settings, table

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.config.resolve import load_experiment
from fuxictr_llm.data.raw import check_shares, check_shares_used
from fuxictr_llm.experiment.run import run_experiment

COLOR, HISTORY = column("color", "categorical"), column("h", "sequence", share_embedding="color")


def inactive(col):
    return {**col, "active": False}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            [HISTORY, COLOR],
            "'h' has share_embedding: color, which comes later in feature_cols; put 'color' in front of 'h'",
        ),
        ([inactive(COLOR), HISTORY], "which is not active; set active: true for 'color'"),
        (
            [column("colour", "categorical"), HISTORY],
            "unknown column 'color' in .* of column 'h'; did you mean 'colour'",
        ),
        ([{**COLOR, "share_embedding": "color"}], "which is the column itself"),
        ([{**COLOR, "share_embedding": None}], "share_embedding: null; leave the key out"),
        (
            [{**COLOR, "type": "numeric"}, HISTORY],
            "is of type numeric and has no values; name a categorical or sequence",
        ),
        ([{**COLOR, "type": "meta"}, HISTORY], "is of type meta and has no values"),
        ([{**COLOR, "type": "embedding"}, HISTORY], "is of type embedding and has no values"),
        ([COLOR, {**HISTORY, "type": "numeric"}], "'h' .* and is of type numeric, which has no values to share"),
        ([{**COLOR, "dtype": "int"}, HISTORY], "texts and of the other numbers, .* give 'color' dtype: str"),
        ([COLOR, column("c", "categorical", "int", share_embedding="color")], "give 'c' dtype: str"),
        (
            [COLOR, HISTORY, {**HISTORY, "name": "g", "share_embedding": "h"}],
            "'g' has share_embedding: h, which has share_embedding: color itself; .*: share_embedding: color",
        ),
        (
            [{**COLOR, "share_embedding": "h"}, HISTORY],
            "which has share_embedding: color itself; leave the key out of one",
        ),
        ([{**COLOR, "name": ["a", "b"]}, {**HISTORY, "share_embedding": "c"}], "unknown column 'c' .* known: a, b, h"),
    ],
)
def test_what_cannot_be_shared_is_one_line(columns, message):
    with pytest.raises(UserError, match=message) as error:
        check_shares({"feature_cols": columns})
    assert "\n" not in str(error.value)


def test_several_share_one_and_an_inactive_one_may_name_any(tmp_path):
    check_shares({"feature_cols": [COLOR, inactive({**HISTORY, "name": "x", "share_embedding": "nothing"})]})
    second = {**HISTORY, "name": "g"}
    lists = {"color": ["a", "b", "c"] * 2, "h": [["d"], ["a", "b"], None] * 2, "g": [["e", "d"], [], ["c"]] * 2}
    made = built(settings(tmp_path, [COLOR, HISTORY, second], table(**lists)))
    words = made["feature_vocab"]
    assert words["color"] == words["h"] == words["g"] and set("abcde") < words["color"].keys()
    sizes = {spec["vocab_size"] for feature in made["feature_map"]["features"] for spec in feature.values()}
    assert sizes == {max(words["color"].values()) + 1}


def test_what_a_model_is_given_shares_as_it_was_built(caplog):
    built_columns = {"color": {}, "h": {"share_embedding": "color"}, "city": {}}
    check_shares_used(built_columns, built_columns, "shop")
    with pytest.raises(
        UserError, match="use_features names 'h' before 'color', whose embedding it shares; put 'color'"
    ):
        check_shares_used({name: built_columns[name] for name in ("h", "color")}, built_columns, "shop")
    check_shares_used({"h": built_columns["h"]}, built_columns, "shop")
    assert "use_features leaves out: it has one of its own" in caplog.text
    changed = {**built_columns, "city": {"share_embedding": "color"}}
    with pytest.raises(
        UserError, match="share_embedding: color of column 'city' in feature_specs: .* say it in feature_c"
    ):
        check_shares_used(changed, built_columns, "shop")


def test_a_run_says_it_before_it_builds(configs):
    path = configs / "dataset_config.yaml"
    path.write_text(path.read_text().replace("max_len: 3}", "max_len: 3, share_embedding: colour}"))
    with pytest.raises(
        UserError, match="unknown column 'colour' in share_embedding of column 'tags'; did you mean 'color'"
    ):
        run_experiment(load_experiment("DeepFM_shop", configs))
    path.write_text(path.read_text().replace("colour", "color"))
    with pytest.raises(UserError, match="use_features names 'tags' before 'color'"):
        run_experiment(load_experiment("DeepFM_shop", configs, overrides={"use_features": ["tags", "color"]}))
