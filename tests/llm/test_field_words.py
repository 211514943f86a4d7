"""Words of coded values: keys and words are what stands in the YAML file, whatever YAML takes them for."""

import json

import pytest

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.files import digest_of
from fuxictr_llm.data.field_words import read_field_config
from fuxictr_llm.llm.catalog import load_catalog

VALUES = ["1", "other", "NO", "null", "2020-01-01", "01", "1_000", "yes", "~", "0x1F", "1e3", "12:30", "1.50", "-0"]


@pytest.fixture
def city(tmp_path):
    """What a field config makes of the values of the one column `city`: `city(yaml of values, *the data's values)`."""

    def words(values, *known):
        texts = {"city": {"distinct": len(known), "values": list(known), "counts": [1] * len(known)}}
        (tmp_path / "field_texts.json").write_text(json.dumps(texts))
        columns = {"features": [{"city": {"type": "categorical"}}]}
        (tmp_path / "feature_map.json").write_text(json.dumps(columns))
        (tmp_path / "words.yaml").write_text(f"fields: {{city: town}}\nvalues:\n    city: {values}\n")
        feature_map = type("Map", (), {"features": {"city": {"type": "categorical"}}})
        return load_catalog(feature_map, tmp_path, str(tmp_path / "words.yaml")).fields[0].values

    return words


def test_keys_of_every_kind_that_yaml_knows_are_texts(city, tmp_path):
    mapping = "{" + ", ".join(f"{value}: word {number}" for number, value in enumerate(VALUES)) + "}"
    assert city(mapping, *VALUES) == tuple(f"word {number}" for number in range(len(VALUES)))
    digest_of(read_field_config(str(tmp_path / "words.yaml")))  # its keys can be sorted


@pytest.mark.parametrize("word", ["NO", "2020-01-01", "007", "on", "1e3", "3.10"])
def test_words_are_texts_too(city, tmp_path, word):
    assert city(f"{{a: {word}}}", "a", "b") == (word, "b")
    (tmp_path / "words.yaml").write_text(f"about: {word}\nfields: {{city: {word}}}\n")
    assert read_field_config(str(tmp_path / "words.yaml")) == {"about": word, "fields": {"city": word}}


def test_no_word_at_all_is_none_and_an_empty_one_is_told_as_nothing(city):
    assert city("{a: , b: null, c: ~, d: ''}", "a", "b", "c", "d") == ("a", "b", "c", "")


def test_an_integer_stands_for_the_same_float_and_for_no_other_text(city, caplog):
    assert city("{1: one, 2.50: two, 3: three}", "1.0", "2.5", "-3.0") == ("one", "two", "-3.0")
    assert "values of 'city' that train does not have: 3.0" in caplog.text
    assert city("{1: one, 01: other}", "1", "01", "1.0") == ("one", "other", "1.0")
    assert city("{01: one}", "1") == ("1",)


def test_a_key_that_is_quoted_is_the_same_key(city):
    with pytest.raises(UserError, match="key '1' is given twice"):
        city("{1: one, '1': other}", "1")


def test_a_column_may_be_called_what_yaml_takes_for_something_else(tmp_path):
    (tmp_path / "words.yaml").write_text("fields: {NO: number of it, 1: first}\nentities: {it: {id: NO, text: [1]}}\n")
    words = read_field_config(str(tmp_path / "words.yaml"))
    assert words["fields"] == {"NO": "number of it", "1": "first"}
    assert words["entities"] == {"it": {"id": "NO", "text": ["1"]}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fields: {city: [a, b]}", "'fields' maps fields to words"),
        ("fields: {city: {a: b}}", "'fields' maps fields to words"),
        ("values: {city: {1: [a]}}", r"'values' fields to value: words \(look at 'city'\)"),
        ("values: {city: [1, 2]}", r"'values' fields to value: words \(look at 'city'\)"),
        ("values: {city: 1}", r"'values' fields to value: words \(look at 'city'\)"),
        ("about: [a]", "'about' must be words"),
        ("values: {city: {[1, 2]: a}}", "is not valid YAML"),
        ("values: {city: {{a: 1}: a}}", "is not valid YAML"),
    ],
)
def test_what_are_no_words_is_named(tmp_path, text, message):
    (tmp_path / "words.yaml").write_text(text + "\n")
    with pytest.raises(UserError, match=message):
        read_field_config(str(tmp_path / "words.yaml"))
