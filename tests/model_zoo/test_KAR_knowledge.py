"""Knowledge that a language model writes: what is told of whom, from which rows, and what a run keeps of it."""

from dataclasses import fields, replace
from pathlib import Path

import pandas as pd
import pytest
import yaml
from conftest import WORDS

from fuxictr_llm.common.checks import checked
from fuxictr_llm.common.errors import UserError
from fuxictr_llm.config.resolve import load_experiment
from fuxictr_llm.data.unseen import RawValues
from fuxictr_llm.experiment.preparation import prepare_data, prepare_run
from fuxictr_llm.experiment.run import run_experiment
from fuxictr_llm.llm import answers as stored
from fuxictr_llm.llm.answers import read_answers
from fuxictr_llm.llm.texts.value_texts import ValueTexts
from fuxictr_llm.llm.writer import Writer
from fuxictr_llm.model_zoo.KAR import knowledge
from fuxictr_llm.model_zoo.KAR.config import KARConfig, KnowledgeKeys
from fuxictr_llm.model_zoo.KAR.knowledge import FACTORS, Prompts
from support import edit

ABOUT = "Data: clicks in a shop."
ENTITIES = "entities: {user: {id: user, text: []}, shirt: {id: color, text: [city]}}"


@pytest.fixture
def shop(configs, tiny_llm):
    """An experiment on `shop` with entities, and a color that train lacks; settings and files may change."""
    edit("words.yaml", "fields:", f"{ENTITIES}\nfields:")
    change("test", lambda table: table.assign(color=["mauve", *table["color"][1:]]))
    model = {"language_model": str(tiny_llm), "llm_dtype": "float32", "knowledge_model": str(tiny_llm)}
    small = {"epochs": 1, "expert_hidden": 8, "knowledge_dim": 4, "knowledge_max_new_tokens": 4, **model}

    def load(**changes):
        return load_experiment("DeepFM_KAR_shop", configs, overrides={**small, **changes})

    return load


def change(split, changed):
    """Write the raw file of a split anew."""
    path = Path("raw") / f"{split}.csv"
    changed(pd.read_csv(path, dtype={"user": str})).to_csv(path, index=False)


def prompts_of(experiment):
    run = prepare_data(experiment, "unused")
    raw = RawValues(run.raw, "KAR")
    prompts = Prompts(checked(KARConfig, experiment.params), run, raw, ValueTexts(run, raw))
    return {name: prompts.of(name) for name in prompts.entities}


def literal_history(user, most=30):
    """What a prompt says of a user's first rows of train."""
    rows = [row for _, row in pd.read_csv("raw/train.csv", dtype={"user": str}).iterrows() if row["user"] == user]
    told = [
        f'{"liked" if row["click"] else "disliked"} "{row["city"]}"' for row in rows[: min((len(rows) + 1) // 2, most)]
    ]
    return f"The user, from the earliest on, {'; '.join(told)}."


def test_a_prompt_tells_the_first_rows_of_a_user_and_the_columns_of_an_item(shop):
    asked = prompts_of(shop(knowledge_factors={"shirt": ["cut", "warmth"]}, knowledge_history=9))
    assert [*asked] == ["user", "color"] and len(asked["user"]) == 30
    for user, each in asked["user"].items():
        assert each.told == literal_history(user, 9)
        question = f"What does this user like? Tell the user's tastes by these factors: {', '.join(FACTORS)}."
        assert each.prompt == f"{ABOUT} {each.told} {question}"
    assert {*asked["color"]} == {*WORDS, "mauve"}
    first = pd.read_csv("raw/train.csv").drop_duplicates("color").set_index("color")["city"]
    assert asked["color"]["red"].told == f"city of the shop is {first['red']}."
    assert asked["color"]["red"].prompt.endswith("Describe it by these factors: cut, warmth.")


def test_no_label_but_those_of_a_users_first_train_rows_is_told(shop):
    before = prompts_of(shop())
    for split in ("valid", "test"):
        change(split, lambda table: table.assign(click=1 - table["click"]))

    def is_later(table):
        return table.groupby("user").cumcount() >= (table.groupby("user")["click"].transform("size") + 1) // 2

    change("train", lambda table: table.assign(click=(table["click"] + is_later(table)) % 2))
    assert prompts_of(shop(data_root="other")) == before
    change("train", lambda table: table.assign(click=(table["click"] + (table.index == 0)) % 2))
    assert prompts_of(shop(data_root="another")) != before


def test_a_run_says_what_was_read_and_written_and_asks_once(shop):
    result = run_experiment(shop())
    stage, note = result.record["stages"]["write knowledge"], result.record["notes"]["knowledge"]
    (path,) = Path("cache/answers").glob("*/answers.jsonl")
    answers = read_answers(path)[0]
    assert 30 < stage["rows"] == len(answers) <= 37 and note["texts"] == {"user": 30, "color": 7}
    assert stage["tokens_written"] == sum(answer.written for answer in answers.values()) <= 4 * len(answers)
    assert stage["tokens_read"] == sum(answer.read for answer in answers.values()) > 10 * len(answers)
    columns = result.record["notes"]["value_tables"]["columns"]
    assert columns["color"] == {"values": 6, "unseen": 1, "without_text": 0} and columns["user"]["values"] == 30
    again = run_experiment(shop(seed=8)).record
    assert again["stages"]["write knowledge"] | {"seconds": 0} == {
        "cached": True, "seconds": 0, **{key: stage[key] for key in ("tokens_read", "tokens_written", "made_in")}
    }  # fmt: skip
    assert again["notes"]["knowledge"] == note
    assert again["notes"]["value_tables"]["sha256"] == result.record["notes"]["value_tables"]["sha256"]


def test_given_knowledge_wins_and_what_is_told_alone_asks_nobody(shop, monkeypatch):
    pd.DataFrame({"color": WORDS, "says": [f"{color} is warm" for color in WORDS]}).to_csv("colors.csv", index=False)
    given = {"color": {"file": "colors.csv", "key": "color", "text": "says"}}
    monkeypatch.setattr(Writer, "__init__", lambda *_: pytest.fail("the language model is asked"))
    run = prepare_run(shop(knowledge_max_new_tokens=0, value_texts=given), "unused")
    assert run.notes["knowledge"]["texts"] == {"user": 30} and "tokens_read" not in run.stages.done["write knowledge"]
    assert [*run.notes["value_tables"]["columns"]] == ["color", "user"]
    told = knowledge._texts(prompts_of(shop(knowledge_max_new_tokens=0))["user"], {})
    assert told["3"] == literal_history("3")


CHANGED = {
    "knowledge_entities": ["user"],
    "knowledge_factors": {"user": ["color"]},
    "knowledge_history": 2,
    "knowledge_max_new_tokens": 3,
    "knowledge_temperature": 1.0,
    "knowledge_seed": 5,
}


def test_every_setting_changes_what_is_written(shop, monkeypatch):
    """Texts are part of the key of all that is made of them: it is enough that they, or the store's key, are others."""
    seen = []

    class Store(stored.AnswerStore):
        def __call__(self, prompts):
            seen.append((self.path, tuple(prompts)))
            raise KeyboardInterrupt

    monkeypatch.setattr(knowledge, "AnswerStore", Store)

    def asked(**changes):
        with pytest.raises(KeyboardInterrupt):
            prepare_run(shop(**changes), "unused")
        return seen[-1]

    keys = {field.name for field in fields(KnowledgeKeys)}
    assert keys == CHANGED.keys() | {"knowledge_model"}  # whose digest test_answers.py has
    base = asked()
    assert {name for name, value in CHANGED.items() if asked(**{name: value}) == base} == {"knowledge_seed"}
    assert asked(knowledge_temperature=1.0) != asked(knowledge_temperature=1.0, knowledge_seed=5)
    assert asked(llm_dtype="bfloat16") != base


def test_no_answer_is_said(shop, monkeypatch, caplog):
    answer = Writer._answer

    quiet = {0}

    def silent(self, row, written, seconds):
        made = answer(self, row, written, seconds)
        return replace(made, text="") if sum(row) % 2 in quiet else made

    monkeypatch.setattr(Writer, "_answer", silent)
    run = prepare_run(shop(), "unused")
    count = run.notes["knowledge"]["unanswered"]
    assert 0 < count < 30 and f"answers nothing to {count} of " in caplog.text
    assert run.notes["value_tables"]["columns"]["user"]["without_text"] == 0
    quiet |= {1}
    with pytest.raises(UserError, match="answers nothing to all .* prompts, .* for one; take one that is tuned"):
        prepare_run(shop(knowledge_max_new_tokens=2), "unused")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"knowledge_entities": ["item"]}, "unknown entity 'item' in 'knowledge_entities', of the field config"),
        ({"knowledge_factors": {"shrit": ["cut"]}}, "unknown entity 'shrit' in 'knowledge_factors', .* mean 'shirt'"),
        (
            {"knowledge_model": None, "knowledge_entities": ["user"]},
            "knowledge_entities has no effect without knowledge",
        ),
        ({"knowledge_entities": ["label"]}, "knowledge_entities: nothing is told of 'label': it needs an id"),
        ({"knowledge_history": 0}, "config key 'knowledge_history' is 0"),
        ({"knowledge_factors": {"user": []}}, "config key 'knowledge_factors"),
        (
            {"value_texts": {"color": "colors.csv", "user": "users.csv"}},
            "knowledge_model has no effect: value_texts has",
        ),
    ],
)
def test_bad_settings_are_one_line(shop, changes, message):
    edit("words.yaml", "shirt: {", "label: {id: tags, text: []}, shirt: {")
    for file, column, values in (("colors.csv", "color", WORDS), ("users.csv", "user", ["0"])):
        pd.DataFrame({column: values, "says": "much"}).to_csv(file, index=False)
    tables = changes.get("value_texts", {})
    sides = {name: {"file": file, "key": name, "text": "says"} for name, file in tables.items()}
    with pytest.raises(UserError, match=message):
        prepare_run(shop(**changes | ({"value_texts": sides} if sides else {})), "unused")


def test_a_field_config_without_entities_has_nothing_to_ask(shop):
    edit("words.yaml", f"{ENTITIES}\n", "")
    with pytest.raises(
        UserError, match="knowledge_model: the field config of data set 'shop' has no entities with an id"
    ):
        prepare_run(shop(), "unused")


def test_the_factors_of_the_packaged_config_are_of_entities_that_there_are():
    folder = Path(knowledge.__file__).parents[2] / "benchmark_configs"
    entries = yaml.safe_load((folder / "method_config" / "KAR.yaml").read_text())
    factors = {key: entry["knowledge_factors"] for key, entry in entries.items() if "_" in key}
    assert {"KAR_movielens100k_time", "KAR_xwines_time"} <= factors.keys()
    for name, of_entities in factors.items():
        params = load_experiment(f"DeepFM_{name}").params
        assert params["knowledge_factors"] == of_entities and of_entities.keys() == {"user", "item"}
