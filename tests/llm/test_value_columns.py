"""What the values of a column are: shared embeddings, words of codes, keys that are too long, equal rows."""

from pathlib import Path

import numpy as np
import pytest

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.config.resolve import load_experiment
from fuxictr_llm.data.field_words import RESERVED
from fuxictr_llm.experiment.preparation import prepare_run
from fuxictr_llm.experiment.run import build_model
from fuxictr_llm.llm.vectors import values as value_vectors
from support import edit, embedding_of, vocabulary


def test_columns_that_share_an_embedding_share_its_vectors(configs, llm):
    edit(configs / "dataset_config.yaml", "- {name: [color, city, user]", "- {name: [city, user]")
    second = "{active: true, dtype: str, type: categorical, name"
    edit(
        configs / "dataset_config.yaml",
        "    - {name: [city",
        f"    - {second}: color}}\n    - {second}: shade, share_embedding: color, preprocess: copy_from(city)}}\n    - {{name: [city",
    )

    def run(columns, **changes):
        specs = [{"name": name, "pretrained_emb": "llm", **keys} for name, keys in columns.items()]
        overrides = {**llm, "feature_specs": specs, **changes}
        return prepare_run(load_experiment("DNN_shop", configs, overrides=overrides), "unused")

    for asked in ({"color": {}}, {"shade": {}}, {"color": {}, "shade": {}}):
        shared = run(asked)
        model = build_model(shared)
        layer = embedding_of(model, "shade")
        assert layer is embedding_of(model, "color")
        assert len(vocabulary("color")) == 6 + 6 + 2 and layer.oov_idx == vocabulary("color")["__OOV__"]
        file = np.load(shared.feature_map.features["color"]["pretrained_emb"])
        assert set(file["key"]) == vocabulary("color").keys() - {*RESERVED} and {"red", "Rome"} <= set(file["key"])
    alone = run({"shade": {}}, use_features=["shade", "city"])
    assert embedding_of(build_model(alone), "shade").pretrain_usage == "init"
    with pytest.raises(UserError, match="'shade' and 'color' share an embedding: ask for the same vectors for both"):
        run({"color": {}, "shade": {"freeze_emb": True}})

    edit(configs / "dataset_config.yaml", "field_config: ", "field_config: shades.yaml # ")
    Path("shades.yaml").write_text("values: {shade: {red: rosso}}")
    both = run({"color": {}, "shade": {}}).notes["value_vectors"]["columns"]
    assert both["color"]["sha256"] == both["shade"]["sha256"]
    given = {
        "name": "color",
        "pretrained_emb": shared.feature_map.features["color"]["pretrained_emb"],
        "pretrain_dim": 4,
    }
    with pytest.raises(UserError, match="'shade' and 'color' share an embedding"):
        prepare_run(
            load_experiment(
                "DNN_shop",
                configs,
                overrides={**llm, "feature_specs": [given, {"name": "shade", "pretrained_emb": "llm"}]},
            ),
            "unused",
        )
    with pytest.raises(UserError, match="'shade' has the embedding of 'color': give .* to both"):
        prepare_run(
            load_experiment("DNN_shop", configs, overrides={"feature_specs": [{**given, "name": "shade"}]}), "unused"
        )


def test_coded_values_of_float_columns_have_their_words(configs, llm):
    edit(
        configs / "dataset_config.yaml",
        "- {name: [color, city, user]",
        "- {name: user, active: true, dtype: float, type: categorical}\n    - {name: [color, city]",
    )
    edit(configs / "dataset_config.yaml", "field_config: ", "field_config: names.yaml # ")
    Path("names.yaml").write_text("values: {user: {1: Anna, 2: Bob}}")
    overrides = {**llm, "feature_specs": [{"name": "user", "pretrained_emb": "llm"}]}
    run = prepare_run(load_experiment("DNN_shop", configs, overrides=overrides), "unused")
    words = value_vectors._train_values(run, ["user"], described=False)["user"]
    assert dict(zip(words.keys, words.words, strict=True))["1.0"] == "Anna" and "2.0" not in words.words


def test_keys_that_fuxictr_would_blow_up_are_refused(prepared, monkeypatch):
    monkeypatch.setattr(value_vectors, "MOST_KEY_BYTES", 100)
    with pytest.raises(
        UserError, match="column 'color': FuxiCTR would read its 6 values at the length of the longest, 5"
    ):
        prepared({"color": {}})


def test_equal_rows_have_no_variance_to_keep():
    vectors, facts = value_vectors.shaped(np.ones((4, 3), dtype=np.float32), 2, None)
    assert not vectors.any() and facts == {}
