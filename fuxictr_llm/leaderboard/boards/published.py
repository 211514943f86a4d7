"""Published figures: the rows of a board, as `leaderboard/*.csv` of the config directory holds them.

bars_ctr.csv: all rows of the 13 CTR boards of BARS (Zhu et al., SIGIR 2022; github.com/reczoo/BARS); where a row has
several runs, BARS prints the first. llactr_gift.csv: the six pairs of LLaCTR (github.com/istarryn/LLaCTR).
"""

import contextlib
import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from fuxictr_llm.common.errors import UserError, unknown
from fuxictr_llm.config.sources import packaged_configs

BOARDS_FOLDER = "leaderboard"
# The names of BARS for backbones of ours; its other names (CrossNet, CIN, AutoInt+, ...) are rows of ours.
OUR_NAMES = {"YoutubeDNN": "DNN", "Wide&Deep": "WideDeep", "IPNN": "PNN", "DCN-V2": "DCNv2"}
NUMBER_COLUMNS = {"runs", "gauc", "auc", "logloss", "auc_mean", "auc_sd", "logloss_mean"}
REQUIRED_COLUMNS = ("board", "model", "auc", "runs")


@dataclass(frozen=True)
class PublishedRow:
    """A line of a board; what is not known is None.

    Attributes:
        board: also the name of the data set in our configs.
        model: as the board calls it.
        gauc, auc, logloss: as printed, on test.
        runs: how many there are; 0: none is published, only the printed figure.
        auc_mean, auc_sd, logloss_mean: of those runs.
        expid: theirs.
        fuxictr: the version of FuxiCTR that it ran with.
        source: the folder or file in the repository that publishes it.
        note: what else is to be known about it.
    """

    board: str
    model: str
    gauc: float | None
    auc: float
    logloss: float | None
    runs: int
    auc_mean: float | None
    auc_sd: float | None
    logloss_mean: float | None
    expid: str | None
    fuxictr: str | None
    source: str | None
    note: str | None

    @property
    def our_expid(self) -> str:
        """The row of ours that has its settings."""
        return f"{OUR_NAMES.get(self.model, self.model)}_{self.board}"

    @property
    def expected_auc(self) -> float:
        """What a repetition is compared with: the mean of several runs, of which `auc` is the first; else `auc`."""
        return self.auc_mean if self.runs > 1 and self.auc_mean is not None else self.auc


BOARD_COLUMNS = [field.name for field in fields(PublishedRow)]


def read_board(board: str, config: Path | str | None = None) -> list[PublishedRow]:
    """The rows of a board, in its order.

    Args:
        board: `criteo_x1`, `llactr_gift`, ...
        config: a config directory whose `leaderboard/*.csv` stand before the packaged ones.

    Raises:
        UserError: no such board, or a file is damaged.
    """
    boards = read_boards(config)
    if board not in boards:
        raise unknown("board", board, boards)
    return boards[board]


def read_boards(config: Path | str | None = None) -> dict[str, list[PublishedRow]]:
    """Every board with its rows; one of the config directory replaces the packaged one of its name.

    Raises:
        UserError: a file is damaged; it names the line.
    """
    boards: dict[str, list[PublishedRow]] = {}
    for folder in [packaged_configs(), *([Path(config)] if config else [])]:
        of_folder: dict[str, list[PublishedRow]] = {}
        for path in sorted((folder / BOARDS_FOLDER).glob("*.csv")):
            for row in _read(path):
                of_folder.setdefault(row.board, []).append(row)
        boards |= of_folder
    return boards


def _read(path: Path) -> list[PublishedRow]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            heads = list(reader.fieldnames or ())
            if missing := [name for name in REQUIRED_COLUMNS if name not in heads]:
                raise UserError(
                    f"{str(path)!r} lacks the column {missing[0]!r}; a board has: {', '.join(BOARD_COLUMNS)}"
                )
            if more := [name for name in heads if name not in BOARD_COLUMNS]:
                raise unknown("column", more[0], BOARD_COLUMNS, repr(str(path)))
            rows: dict[tuple[str, str], PublishedRow] = {}
            for cells in reader:
                row = _row(cells, path, reader.line_num)
                if rows.setdefault((row.board, row.model), row) is not row:
                    raise UserError(f"{str(path)!r}, line {reader.line_num}: {row.model!r} is given twice")
            return list(rows.values())
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read the board {str(path)!r}: {error}") from error


def _row(cells: Mapping[str | None, str | None], path: Path, line: int) -> PublishedRow:
    where = f"{str(path)!r}, line {line}"
    texts = {name: (cells.get(name) or "").strip() for name in BOARD_COLUMNS}
    if absent := [name for name in REQUIRED_COLUMNS if not texts[name]]:
        raise UserError(f"{where}: {absent[0]!r} is empty")
    if None in cells:
        raise UserError(f"{where} has more cells than the header")
    values: dict[str, Any] = {name: text or None for name, text in texts.items()}
    for name in NUMBER_COLUMNS:
        if texts[name]:
            values[name] = _number(texts[name], int if name == "runs" else float, f"{where}: {name}")
    return PublishedRow(**values)


def _number(text: str, kind: type[int] | type[float], where: str) -> float | int:
    with contextlib.suppress(ValueError):
        if math.isfinite(number := kind(text)):
            return number
    raise UserError(f"{where} is {text!r}, which is no {'whole ' * (kind is int)}number")
