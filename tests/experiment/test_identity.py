"""What a run was made from says whether it would be the same again."""

from itertools import pairwise
from pathlib import Path

import pytest

from fuxictr_llm.common.files import digest_of_file
from fuxictr_llm.config.resolve import load_experiment
from fuxictr_llm.experiment.record import source_digests

TABLE = {"city": {"file": "cities.csv", "key": "city", "text": "about"}}


def write(path, content="old"):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(content)


@pytest.mark.parametrize(
    ("expid", "settings", "files"),
    [
        ("FM_ELEC_shop", {"teacher": "ck/shop/T"}, ["ck/shop/T.run.json", "ck/shop/T.model"]),
        ("FM_ELEC_shop", {"teacher": "ck/shop/T"}, ["ck/shop/T/T.run.json", "ck/shop/T/T.model"]),
        ("FM_ELEC_shop", {"teacher": "ck/shop/T/T.model"}, ["ck/shop/T/T.run.json", "ck/shop/T/T.model"]),
        ("FM_ELEC_shop", {"teacher": "ck/shop/T.model"}, ["ck/shop/T.run.json", "ck/shop/T.model"]),
        ("FM_ELEC_shop", {"teacher": "export"}, ["export/config.json", "export/model.safetensors"]),
        ("FM_ELEC_shop", {"text_vectors": "vectors"}, ["vectors/user/manifest.json", "vectors/item/0.safetensors"]),
        ("FM_ELEC_shop", {"value_texts": TABLE}, ["cities.csv"]),
        ("FM_LLaCTR_shop", {"language_model": "llm"}, ["llm/model.safetensors", "llm/tokenizer.json"]),
        ("FM_LLaCTR_shop", {"field_vectors": "given.npy"}, ["given.npy"]),
        (
            "FM_shop",
            {"feature_specs": [{"name": "city", "pretrained_emb": "llm"}], "language_model": "llm"},
            ["llm/config.json"],
        ),
        ("FM_shop", {"feature_specs": [{"name": "city", "pretrained_emb": "city.npz"}]}, ["data/shop/city.npz"]),
    ],
)
def test_what_a_run_was_made_from_counts(configs, expid, settings, files):
    for file in files:
        write(file)
    params = load_experiment(expid, configs, overrides=settings).params
    seen = [source_digests(params)]
    assert len(seen[0]["files"]) == 1
    for file in files:
        write(file, "new")
        seen.append(source_digests(params))
    assert all(one != other for one, other in pairwise(seen)) and source_digests(params) == seen[-1]


def test_what_has_nothing_to_do_with_a_run_does_not_count(configs):
    params = load_experiment("FM_ELEC_shop", configs).params
    before = source_digests(params)
    for file in ("gain/notes.txt", "entity/a", "staged/b", "llm/c", "shop/d"):  # called like values
        write(file)
    assert source_digests(params) == before and before.keys() == {"code", "words"}
    given = load_experiment("FM_LLaCTR_shop", configs, overrides={"field_vectors": "llm/given.npy"}).params
    write("llm/given.npy")
    assert source_digests(given)["files"] == {"llm/given.npy": digest_of_file("llm/given.npy")}  # as in earlier records


def test_hidden_files_of_a_folder_and_values_that_name_nothing_do_not_count(configs):
    settings = {"text_vectors": "vectors", "teacher": "long " * 100}
    params = load_experiment("FM_ELEC_shop", configs, overrides=settings).params
    assert "files" not in source_digests(params)
    write("vectors/user/manifest.json")
    before = source_digests(params)
    write("vectors/user/.0.safetensors.123.tmp")
    assert source_digests(params) == before
    write("vectors/user/1.safetensors")
    assert source_digests(params) != before
