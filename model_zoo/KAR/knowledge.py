"""Knowledge of users and items that a causal language model writes: KAR's factorization prompting.

The prompt of an item tells its columns, that of a user who it is and which items it liked and disliked: its earliest
rows of train. Of valid and test, only the words of items that train lacks are read, no label.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from fuxictr_llm.common.errors import UserError, unknown
from fuxictr_llm.common.files import digest_of
from fuxictr_llm.common.processes import from_main
from fuxictr_llm.common.runs import Run
from fuxictr_llm.data.unseen import RawValues
from fuxictr_llm.llm.answers import AnswerStore, totals
from fuxictr_llm.llm.catalog import Entity, load_catalog
from fuxictr_llm.llm.texts.sentences import owner_of, vocabulary_of, words_of
from fuxictr_llm.llm.texts.value_texts import ValueTexts
from fuxictr_llm.llm.vectors.cold import unseen_values, whole_vocabulary
from fuxictr_llm.llm.writer import Answer, Writing

from .config import KARConfig

USER = "user"
FACTORS = ("kind", "subject", "style", "mood", "quality", "price", "occasion")
LIKED_FROM = 0.5  # a label


@dataclass(frozen=True)
class Asked:
    """Of an id, what a prompt tells, and the whole prompt."""

    told: str
    prompt: str


class Prompts:
    """The prompts of a run's entities.

    Args:
        config: which entities, by which factors, and how long a history.
        run: the experiment under way.
        raw: the raw values of its data set.
        texts: tells entities by their columns.

    Attributes:
        entities: the column of ids -> its entity, of those that knowledge is written of.

    Raises:
        UserError: there is none, or a named one is not there.
    """

    def __init__(self, config: KARConfig, run: Run, raw: RawValues, texts: ValueTexts):
        self.config, self.run, self.raw, self.texts = config, run, raw, texts
        self.catalog = load_catalog(run.feature_map, run.data_dir, run.params.get("field_config"))
        known = {entity.name: entity for entity in self.catalog.entities}
        for key in ("knowledge_entities", "knowledge_factors"):
            for name in getattr(config, key) or ():
                if name not in known:
                    raise unknown("entity", name, known, f"{key!r}, of the field config")
        # Titles of a history: of the first entity that has some besides the user.
        items = [entity for entity in known.values() if entity.name != USER and entity.text and self._is_told(entity)]
        self.item = next(iter(items), None)
        able = [
            entity for entity in known.values() if entity in items or (entity.name == USER and self._has_id(entity))
        ]
        named = [entity for entity in able if entity.name in (config.knowledge_entities or known)]
        self.entities = {str(entity.id): entity for entity in named if entity in items or self.item}
        if lacking := {*(config.knowledge_entities or ())} - {entity.name for entity in self.entities.values()}:
            raise UserError(
                f"knowledge_entities: nothing is told of {min(lacking)!r}: it needs an id of type categorical, and "
                "columns that describe it (of a user, those of items) in the field config's entities"
            )
        if not self.entities:
            raise UserError(
                f"knowledge_model: the field config of data set {run.params['dataset_id']!r} has no entities with an "
                "id and columns that describe it, so there is nothing to ask; describe them there, or give value_texts"
            )

    def _has_id(self, entity: Entity) -> bool:
        features = self.run.feature_map.features
        return entity.id in self.raw.columns and features.get(entity.id, {}).get("type") == "categorical"

    def _is_told(self, entity: Entity) -> bool:
        return self._has_id(entity) and entity.id in self.texts.of_ids

    def of(self, name: str) -> dict[str, Asked]:
        """Value -> what is asked of it, for those of a column that something can be told of."""
        features, entity = self.run.feature_map.features, self.entities[name]
        needed = dict.fromkeys([name, *self.texts.of_ids.get(name, ())])
        train = self._texts(name, ["train"], needed, vocabulary_of(self.run, name)[0])
        if entity.name == USER:
            return self._of_users(name, train)
        unseen = []
        if name != self.run.params.get("group_id"):
            unseen = unseen_values(self.run, self.raw, {}, [name], whole_vocabulary(self.run, owner_of(name, features)))
        told = train | self._texts(name, ["valid", "test"], needed, unseen)
        question = f"What is it like? Describe it by these factors: {self._factors(entity)}."
        return {value: self._asked(text, question) for value, text in told.items()}

    def _texts(self, name: str, splits: Sequence[str], needed: Iterable[str], values: Sequence[str]) -> dict[str, str]:
        frames = [self.raw.frame(split, needed) for split in splits if split in self.raw]
        if name in self.texts.of_ids:
            return self.texts.of(name, frames, values)
        return dict.fromkeys(values, "")

    def _of_users(self, name: str, told: Mapping[str, str]) -> dict[str, Asked]:
        """Of users that have a row in train; who they are alone says nothing of their tastes."""
        question = (
            f"What does this user like? Tell the user's tastes by these factors: {self._factors(self.entities[name])}."
        )
        histories = self._histories(name)
        values = [value for value in vocabulary_of(self.run, name)[0] if value in histories]
        return {value: self._asked(f"{told.get(value, '')} {histories[value]}".strip(), question) for value in values}

    def _histories(self, user: str) -> dict[str, str]:
        assert self.item is not None
        title, label = self.texts.of_ids[str(self.item.id)][0], self.run.feature_map.labels[0]
        rows = self.raw.frame("train", [user, title, label]).filter(pl.col(title) != "")
        first = pl.min_horizontal((pl.len() + 1) // 2, self.config.knowledge_history)
        table = rows.group_by(user, maintain_order=True).agg(pl.col(title, label).head(first)).collect()
        titles = table[title].explode().unique().to_list() if len(table) else []
        words = words_of(self.run, title, titles) if title in self.run.feature_map.features else {}

        def told(cells: Sequence[str], labels: Sequence[str]) -> str:
            verbs = ["liked" if float(value or 0) > LIKED_FROM else "disliked" for value in labels]
            parts = [f'{verb} "{words.get(cell, cell).strip()}"' for verb, cell in zip(verbs, cells, strict=True)]
            return f"The user, from the earliest on, {'; '.join(parts)}."

        return {value: told(cells, labels) for value, cells, labels in table.select(user, title, label).iter_rows()}

    def _factors(self, entity: Entity) -> str:
        return ", ".join((self.config.knowledge_factors or {}).get(entity.name, FACTORS))

    def _asked(self, told: str, question: str) -> Asked:
        return Asked(told, f"Data: {self.catalog.about}. {told} {question}")


def write_knowledge(config: KARConfig, run: Run, prompts: Prompts, columns: Sequence[str]) -> dict[str, dict[str, str]]:
    """Column -> value -> knowledge, the answer and then what was told, from the store where it is there.

    Args:
        config: which language model writes, and how.
        run: the experiment under way; the stage `write knowledge` and a note are added to it.
        prompts: of its entities.
        columns: of ids.

    Raises:
        UserError: the language model cannot be had, does not write, or answers nothing at all.
    """
    with run.stages("write knowledge") as stage:
        asked = {name: prompts.of(name) for name in columns}
        answers: dict[str, Answer] = {}
        if config.knowledge_max_new_tokens:
            answers, facts = from_main(lambda: _answers(config, run, asked))
            stage |= totals(answers) | facts
        texts = {name: _texts(of_column, answers) for name, of_column in asked.items()}
    run.notes["knowledge"] = {
        "language_model": config.knowledge_model,
        "sha256": digest_of(texts),
        "texts": {name: len(of_column) for name, of_column in texts.items()},
        "unanswered": sum(not answer.text for answer in answers.values()),
        "cut": sum(not answer.ended for answer in answers.values()),
    }
    return texts


def _answers(
    config: KARConfig, run: Run, asked: Mapping[str, Mapping[str, Asked]]
) -> tuple[dict[str, Answer], dict[str, Any]]:
    """Prompt -> answer, and facts for the stage."""
    assert config.knowledge_model is not None
    dtype, length = config.dtype_on(run.params["gpu"]), config.knowledge_max_new_tokens
    writing = Writing(config.knowledge_model, dtype, length, config.knowledge_temperature, config.knowledge_seed)
    store = AnswerStore(writing, run.params["gpu"])
    answers = store([each.prompt for of_column in asked.values() for each in of_column.values()])
    silent = [prompt for prompt, answer in answers.items() if not answer.text]
    if len(silent) == len(answers):
        raise UserError(
            f"language model {config.knowledge_model!r} answers nothing to all {len(silent)} prompts, {silent[0]!r} "
            "for one; take one that is tuned to answer, or give value_texts"
        )
    if silent:
        message = "%s answers nothing to %d of %d prompts: of these, the knowledge is what was told"
        logging.warning(message, config.knowledge_model, len(silent), len(answers))
    logging.info("Knowledge of %d users, items and so on: %s", len(answers), store.path)
    return answers, {"rows": store.written_here} if store.written_here else {"cached": True}


def _texts(asked: Mapping[str, Asked], answers: Mapping[str, Answer]) -> dict[str, str]:
    texts = {}
    for value, each in asked.items():
        answer = answers.get(each.prompt)
        texts[value] = f"{answer.text if answer else ''} {each.told}".strip()
    return texts
