"""Columns of frozen text vectors that a backbone reads as its own: the base of methods that add them.

Shape symbols: `B` rows, `V` ids of a column in training, `M` values that train lacks, `W` width of the vectors.
"""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from fuxictr.features import FeatureMap
from torch import Tensor

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.runs import Run
from fuxictr_llm.config.value_tables import ValueTablesConfig
from fuxictr_llm.enhancement import Enhancement
from fuxictr_llm.enhancement.anatomy import Anatomy
from fuxictr_llm.enhancement.base import NotTried, Trial
from fuxictr_llm.enhancement.columns import AddedColumn, IdTables, added_name
from fuxictr_llm.enhancement.folded import StoredVectors
from fuxictr_llm.host.batches import columns_of
from fuxictr_llm.llm.catalog import load_catalog
from fuxictr_llm.llm.texts.value_texts import ValueTexts
from fuxictr_llm.llm.vectors.value_tables import (
    ValueTables,
    check_value_tables,
    read_value_tables,
    write_value_tables,
)

TRIAL_WIDTH = 8  # of the vectors of a self-check


class TextColumns(Enhancement):
    """For each column of ids that has a table, one more column with the vectors of its ids.

    Args:
        config: its `value_tables` names the file of tables.
        anatomy: the backbone's.
    """

    vocab_sizes: Tensor
    reads_embeddings = False

    def __init__(self, config: ValueTablesConfig, anatomy: Anatomy):
        super().__init__(config, anatomy)
        tables, self.ids = read_value_tables(_file_of(config))
        self.vectors = IdTables(tables)
        self.register_buffer("vocab_sizes", torch.tensor([self.ids[name][0] for name in tables]))

    @classmethod
    def make_tables(cls, config: Any, run: Run) -> ValueTables:
        """The tables of a run."""
        raise NotImplementedError

    @classmethod
    def prepare(cls, config: Any, run: Run) -> dict[str, Any]:
        """Tables of vectors from the language model (cached), as a file that training reads."""
        if config.value_tables:
            check_value_tables(config.value_tables, run.feature_map.features)
            return {}
        made = cls.make_tables(config, run)
        run.prepared = made.data
        return {"value_tables": str(made.path)}

    @classmethod
    def columns(cls, config: ValueTablesConfig, feature_map: FeatureMap) -> dict[str, AddedColumn]:
        widths = check_value_tables(_file_of(config), feature_map.features)
        return {added_name(name): AddedColumn(cls.width_of(config, width)) for name, width in widths.items()}

    @classmethod
    def width_of(cls, config: Any, width: int) -> int:
        """Of an added column, for a table of vectors of that width."""
        return width

    @classmethod
    def fold(cls, config: Any, anatomy: Anatomy, state: Mapping[str, Tensor]) -> Enhancement:
        """Tables of what the backbone reads by id; values that train lacks have zeros."""
        part = f"vectors.{IdTables.PREFIX}"
        tables = {name.removeprefix(part): table for name, table in state.items() if name.startswith(part)}
        read, sizes = cls.folded_tables(config, tables, state), state["vocab_sizes"].tolist()
        known = {name: read[name][:size].clone() for name, size in zip(tables, sizes, strict=True)}
        return StoredVectors.of_tables(known, anatomy)

    @classmethod
    def folded_tables(cls, config: Any, tables: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the backbone reads of each id, `[V + M, W]`, from the trained state of the method."""
        return dict(tables)

    @classmethod
    def self_check(cls, trial: Trial) -> Sequence[str]:
        """A backbone with random vectors for a column trains, and reads them."""
        features = trial.feature_map.features
        names = [name for name, spec in features.items() if spec["type"] == "categorical" and spec["vocab_size"] > 2]
        if not names:
            raise NotTried("the data set has no categorical column")
        with tempfile.TemporaryDirectory() as folder:
            file = str(Path(folder) / "tables.safetensors")
            write_random_tables(file, {name: features[name]["vocab_size"] for name in names[:1]})
            model = trial.trained(trial.enhanced(cls, value_tables=file))
        before = trial.predictions(model)
        for table in model.enhancement.vectors.buffers():
            table.mul_(-2)  # not -1: a backbone may read squares alone
        if torch.equal(trial.predictions(model), before):
            raise UserError(f"{trial.cls.__name__} does not read the column of vectors that it was given")
        return ()

    def on_train_begin(self, run: Run) -> None:
        run.params |= run.prepared or {}  # the rows of valid and test in which unseen values have ids

    def inputs(self, inputs: Any) -> dict[str, Tensor]:
        columns = columns_of(inputs)
        return {added_name(name): read for name, read in self.read(columns).items()} | self._oov(columns)

    def read(self, columns: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the backbone gets of each column's ids `[B]`: their vectors `[B, W]`."""
        return self.vectors(columns)

    def _oov(self, columns: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The columns in which values that train lacks have ids of their own: the backbone knows them as one."""
        own = {name: columns[name] >= size for name, (size, _) in self.ids.items()} if not self.training else {}
        return {name: columns[name].masked_fill(here, self.ids[name][1]) for name, here in own.items() if here.any()}


def columns_to_tell(run: Run, texts: ValueTexts) -> list[str]:
    """The ids of entities, or else the columns whose values are words; one value a row.

    Raises:
        UserError: there is none.
    """
    features = run.feature_map.features
    catalog = load_catalog(run.feature_map, run.data_dir, run.params.get("field_config"))
    for names in ([*texts.of_ids], catalog.names_of_words):
        if fitting := [name for name in names if features.get(name, {}).get("type") == "categorical"]:
            return fitting
    raise UserError(
        f"no column of data set {run.params['dataset_id']!r} has values in words; name columns with value_fields, or "
        "ids and what tells them as entities in the field config"
    )


def write_random_tables(file: str, sizes: Mapping[str, int], width: int = TRIAL_WIDTH) -> None:
    """A file of tables of random vectors, with zeros for padding and unseen values: V ids of each column."""
    generator = torch.Generator().manual_seed(0)
    tables = {name: torch.randn(size, width, generator=generator) for name, size in sizes.items()}
    for table in tables.values():
        table[[0, -1]] = 0
    write_value_tables(Path(file), tables, {name: [size, size - 1] for name, size in sizes.items()})


def _file_of(config: ValueTablesConfig) -> str:
    if config.value_tables is None:
        raise UserError(
            "a method that adds text vectors needs value_tables, a file of them; "
            "'python -m fuxictr_llm encode --expid EXPID' makes and prints it"
        )
    return config.value_tables
