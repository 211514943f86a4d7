"""The keys of vectors of texts and of values have all that changes them.

A setting that is not named here fails: say what it changes, or why it changes nothing.
"""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from fuxictr_llm.common import cache as store
from fuxictr_llm.common.files import digest_of
from fuxictr_llm.config.language_models import RowTextsConfig, ValueVectorsConfig
from fuxictr_llm.config.resolve import load_experiment
from fuxictr_llm.data import unseen
from fuxictr_llm.llm.model_files import DIGESTED_SUFFIXES, digest_of_model
from fuxictr_llm.llm.vectors import cold
from fuxictr_llm.llm.vectors import encoder as text_vectors
from fuxictr_llm.llm.vectors import values as value_vectors
from support_keys import settings_of


def text_key(folder, monkeypatch, texts=("a", "b"), head="", adapter=None, gpu=-1, **changes):
    settings = {"language_model": str(folder), "llm_dtype": "float32", **changes}
    keys = []
    answer = SimpleNamespace(seconds=None, cut=0, tokens=0)
    monkeypatch.setattr(text_vectors, "find_or_write", lambda kind, made, *_, **__: keys.append(made) or answer)
    text_vectors.TextEncoder(RowTextsConfig(**settings), gpu, adapter).store_of(texts, head)
    return digest_of(keys)


TEXTS = {"llm_dtype": "bfloat16", "llm_pooling": "last", "llm_max_text_tokens": 8}
# The texts themselves are in the key; who encodes them changes nothing; placebos have seeds of their own.
OF_OTHERS = {"language_model", "text_units", "text_fields", "value_texts", "encoder", "ray_workers", "text_vectors"}


@settings_of(RowTextsConfig, TEXTS, {*OF_OTHERS, "control_seed"})
def test_text_vectors(name, value, tiny_llm, monkeypatch):
    assert text_key(tiny_llm, monkeypatch, **{name: value}) != text_key(tiny_llm, monkeypatch)


def test_text_vectors_of_other_texts_models_and_adapters(tiny_llm, tmp_path, monkeypatch):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "weights").write_text("a")
    others = [{}, {"texts": ("b", "a")}, {"head": "color:"}, {"gpu": 0}, {"adapter": tmp_path / "adapter"}]
    keys = [text_key(tiny_llm, monkeypatch, **other) for other in others]
    (tmp_path / "adapter" / "weights").write_text("b")
    keys.append(text_key(tiny_llm, monkeypatch, **others[-1]))
    assert len({*keys}) == len(keys)


@pytest.mark.parametrize("suffix", DIGESTED_SUFFIXES)
def test_a_language_model_is_another_with_any_of_its_files_changed(suffix, tmp_path):
    (tmp_path / f"a{suffix}").write_text("a")
    before = digest_of_model(tmp_path)
    (tmp_path / f"a{suffix}").write_text("b")
    assert digest_of_model(tmp_path) != before


VALUES = {
    "llm_dtype": "bfloat16",
    "llm_pooling": "last",
    "field_vectors": "shuffled",
    "llm_max_value_tokens": 8,
    "value_text": "plain",
    "value_dim": 3,
    "value_scale": 0.5,
    "control_seed": 1,
}


# How files are used, and what is made for values that train lacks, which is looked at below.
OF_UNSEEN = {"cold_values", "cold_fields", "cold_catalog", "value_texts", "llm_max_text_tokens"}


@settings_of(ValueVectorsConfig, VALUES, {"language_model", "value_usage", "value_freeze", *OF_UNSEEN})
def test_value_vectors(name, value, tiny_llm, monkeypatch):
    keys = []
    monkeypatch.setattr(store, "find_or_make", lambda kind, made_from, *_: keys.append(digest_of(made_from)))
    base = ValueVectorsConfig(language_model=str(tiny_llm), llm_dtype="float32", field_vectors="random")

    def add(config, words=("red", "blue"), form="npz"):
        head = "color:" if config.value_text == "described" else ""
        column = value_vectors.ColumnValues(("r", "b"), words, head, 3)
        encoder = text_vectors.TextEncoder(config, -1)
        value_vectors._file(config, encoder, "color", column, config.value_dim, form)

    add(base)
    add(replace(base, **{name: value}))
    add(base, words=("red", "green"))
    add(base, form="h5")
    assert len({*keys}) == 4


COLD_TEXTS = {"llm_dtype": "bfloat16", "llm_pooling": "last", "llm_max_text_tokens": 8}


@pytest.mark.parametrize(("name", "value"), COLD_TEXTS.items(), ids=list(COLD_TEXTS))
def test_texts_of_unseen_values(name, value, tiny_llm):
    config = ValueVectorsConfig(language_model=str(tiny_llm), llm_dtype="float32")
    encoders = [
        text_vectors.TextEncoder(cold.text_config(each), -1) for each in (config, replace(config, **{name: value}))
    ]
    assert encoders[0].settings != encoders[1].settings


def test_rows_of_unseen_values(monkeypatch):
    keys = []
    monkeypatch.setattr(
        unseen.cache, "find_or_make", lambda kind, made_from, *_: keys.append(digest_of(made_from)) or [0]
    )

    def add(split="test", built="a", raw="a", vocabulary=None, ids=None):
        for name, content in (("built.parquet", built), ("raw.csv", raw)):
            Path(name).write_text(content)
        values = SimpleNamespace(files={"test": [Path("raw.csv")], "valid": [Path("raw.csv")]})
        vocabularies = {"item": vocabulary or {"i1": 1}}
        unseen.rows_with_own_ids(values, split, "built.parquet", vocabularies, {"item": ids or {"i2": 3}})

    others = [{"split": "valid"}, {"built": "bb"}, {"raw": "bb"}, {"vocabulary": {"i1": 2}}, {"ids": {"i3": 3}}]
    for other in [{}, *others, {"ids": {"i2": 4}}]:
        add(**other)
    assert len({*keys}) == len(keys) == 7


def test_unseen_values_are_part_of_a_runs_identity(configs, llm):
    settings = {"cold_values": "words", "cold_fields": ["color"], "llm_max_text_tokens": 8}
    settings |= {"cold_catalog": {"color": "a.csv"}, "value_texts": {"color": {"file": "a", "key": "b", "text": "c"}}}
    assert settings.keys() == OF_UNSEEN
    whole = {**llm, **settings}
    digests = [load_experiment("FM_LLMEmb_shop", configs, overrides=whole).sha256]
    for name in OF_UNSEEN - {"cold_values"}:
        fewer = {key: value for key, value in whole.items() if key != name}
        digests.append(load_experiment("FM_LLMEmb_shop", configs, overrides=fewer).sha256)
    digests.append(load_experiment("FM_LLMEmb_shop", configs, overrides={**whole, "cold_values": "mean"}).sha256)
    assert len({*digests}) == len(digests) == 6
