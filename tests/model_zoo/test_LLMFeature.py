"""LLMFeature: the texts' vectors where they belong, unseen values through theirs, and an export without the language model."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.files import read_json
from fuxictr_llm.config.resolve import load_experiment
from fuxictr_llm.data.loader import make_loaders
from fuxictr_llm.experiment.preparation import prepare_run
from fuxictr_llm.experiment.run import build_model, run_experiment
from fuxictr_llm.llm.vectors.value_tables import read_value_tables
from fuxictr_llm.model_zoo.text_columns import write_random_tables
from fuxictr_llm.registry import find_method
from fuxictr_llm.serving.export import export_run
from fuxictr_llm.serving.load import load_model
from support import vocabulary

UNSEEN = "scarlet"


@pytest.fixture
def shop(configs, llm, tmp_path):
    """Settings and the config directory of `shop`, in whose valid and test rows some reds are of a color of their own."""
    for split in ("valid", "test"):
        path = tmp_path / "raw" / f"{split}.csv"
        path.write_text(path.read_text().replace("red,", f"{UNSEEN},"))
    return lambda expid="DeepFM_LLMFeature_shop", **changes: load_experiment(
        expid, configs, overrides={"epochs": 1, **({} if expid.count("_") == 1 else llm), **changes}
    )


def test_each_value_has_the_vector_of_its_text_and_an_unseen_one_too(shop, model):
    result = run_experiment(shop())
    tables, ids = read_value_tables(result.run.params["value_tables"])
    assert [*tables] == ["color", "city"]  # users are no words, tags are several a row
    known = vocabulary("color")
    size, oov = ids["color"]
    assert (size, oov) == (len(known), known["__OOV__"])
    values = [value for value in known if not value.startswith("__")]
    texts = [f"color of the shirt is {value}." for value in [*values, UNSEEN]]
    model.pooling = "mean"
    vectors = model.encode(texts)
    mean, deviation = vectors[:-1].mean(dim=0), vectors[:-1].std(dim=0, correction=0)
    expected = torch.zeros(size + 1, vectors.shape[1])
    expected[[*(known[value] for value in values), size]] = (vectors - mean) / deviation
    assert torch.allclose(tables["color"], expected, atol=1e-3)
    assert result.record["notes"]["value_tables"]["columns"]["color"] == {"values": 6, "unseen": 1, "without_text": 0}

    added = result.model.enhancement
    batch = {"color": torch.tensor([known["blue"], size, oov]), "city": torch.tensor([1, 2, 3])}
    read = added.inputs(batch)
    assert torch.equal(read["llm_vector_color"], 0.01 * tables["color"][[known["blue"], size, oov]])
    assert read["color"].tolist() == [known["blue"], oov, oov] and "city" not in read
    assert "color" not in added.train().inputs(batch)  # train rows have no such ids

    rows = [batch["color"] for batch in make_loaders(result.run.feature_map, result.run.params, "test")]
    assert (torch.cat(rows) == size).any() and result.record["parameters"]["method"] == 0
    plain = run_experiment(shop("DeepFM_shop"))
    assert plain.record["data"] == result.record["data"]  # a leaderboard compares runs on the same data
    assert plain.record["metrics"] != result.record["metrics"]


def test_an_export_looks_vectors_up_by_id_and_needs_no_language_library(shop, monkeypatch, tmp_path):
    result = run_experiment(shop())
    monkeypatch.setitem(sys.modules, "transformers", None)
    served = load_model(export_run(f"checkpoints/shop/{result.record['model_id']}", tmp_path / "served"))
    assert served.fields == ("color", "city", "user", "tags")
    _, ids = read_value_tables(result.run.params["value_tables"])
    for batch in make_loaders(result.run.feature_map, result.run.params, "test"):
        known = {name: column[batch["color"] < ids["color"][0]] for name, column in batch.items()}
        with torch.inference_mode():
            expected = result.model.eval().forward(known)["y_pred"].view(-1).numpy()
        assert np.array_equal(served.predict(known), expected)
    assert read_json(tmp_path / "served" / "config.json")["folded"]["class"] == "StoredVectors"


def test_the_tables_depend_on_the_placebo_and_a_given_file_needs_no_language_model(shop):
    found = {}
    for source in ("llm", "random", "shuffled"):
        run = prepare_run(shop(field_vectors=source), "unused")
        found[source] = read_value_tables(run.params["value_tables"])[0]["city"]
    assert not torch.equal(found["llm"], found["random"])
    real = found["llm"][1:-1]
    assert torch.allclose(found["shuffled"][1:-1].sort(dim=0)[0], real.sort(dim=0)[0], atol=1e-5)
    assert (found["shuffled"][1:-1] != real).any(dim=1).all()  # no value keeps its own
    write_random_tables("tables.safetensors", {"city": vocabulary("city")["__OOV__"] + 1})
    given = prepare_run(shop(value_tables="tables.safetensors", language_model="no/such"), "unused")
    assert "value_tables" not in given.notes
    assert build_model(given).added_columns == ("llm_vector_city",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"value_fields": ["colour"]}, "unknown column 'colour' in 'value_fields'; did you mean 'color'?"),
        ({"value_fields": ["tags"]}, "value_fields: column 'tags' is of type sequence; a row must have one value in it"),
        ({"value_fields": []}, "config key 'value_fields' is \\[\\]"),
        ({"value_scale": 0}, "config key 'value_scale' is 0"),
        ({"field_vectors": "none"}, "config key 'field_vectors' is 'none'"),
        ({"value_tables": "none.safetensors"}, "value_tables 'none.safetensors' cannot be read as tables of vectors"),
        ({"value_tables": "other.safetensors"}, "is of a data set with 99 ids of 'city', this one has 8; leave the key"),
        ({"value_tables": "strange.safetensors"}, "unknown column 'town' in value_tables 'strange.safetensors'; known"),
        ({"value_texts": {"colour": {"file": "a.csv", "key": "k", "text": "t"}}}, "unknown column 'colour' in 'value_texts'"),
        ({"use_features": ["user"]}, "no column of data set 'shop' has values in words; name columns with value_fields"),
    ],
)  # fmt: skip
def test_bad_settings_are_one_line(shop, changes, message):
    write_random_tables("other.safetensors", {"city": 99})
    write_random_tables("strange.safetensors", {"town": 9})
    with pytest.raises(UserError, match=message):
        run_experiment(shop(**changes))
    assert not list(Path().glob("checkpoints/shop/*.model"))


def test_scripts_of_fuxictr_get_a_clear_word():
    from fuxictr_llm import model_zoo
    from support import build

    assert find_method("LLMFeature").model_cls.controls
    with pytest.raises(UserError, match="needs value_tables, a file of them; 'python -m fuxictr_llm encode"):
        build(model_zoo.DeepFM_LLMFeature)
