"""Whether each entity has one text: a title that is written in two ways makes two of a movie.

Shape symbols: `B` rows of a batch, `N` texts of a unit.
"""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from fuxictr_llm.errors import UserError
from fuxictr_llm.semantics.row_keys import Distinct
from fuxictr_llm.semantics.text_units import UnitPlan
from fuxictr_llm.semantics.vocabulary import train_ids

ODD = -7046029254386353131  # 2^64 by the golden ratio, as a signed number


class EntityTexts:
    """The distinct pairs of an entity's id and the key of its text, as rows go by.

    Args:
        plan: the units; those of an entity whose id is a column of the data set are looked at.
        run: the experiment under way.
    """

    def __init__(self, plan: Sequence[UnitPlan], run: Any):
        self.run = run
        features = run.feature_map.features
        one_id = [unit for unit in plan if unit.id and features.get(unit.id, {}).get("type") in ("categorical", "meta")]
        # A unit that its own id decides about has one text for each.
        self.columns = {unit.name: unit.id for unit in one_id if unit.columns != (unit.id,)}
        self._pairs = {name: Distinct(2, np.int64) for name in self.columns}

    def add(self, name: str, ids: np.ndarray, keys: np.ndarray) -> None:
        """The ids `[B]` of a unit's entity, and the keys `[B]` of its texts.

        Raises:
            KeyCollision: different pairs cannot be told apart with these keys.
        """
        pairs = np.stack([ids.astype(np.int64), keys], axis=1)
        self._pairs[name].add(pairs[:, 0] * ODD + pairs[:, 1], pairs)  # modulo 2^64

    def warn(self, name: str, keys: np.ndarray, positions: np.ndarray, texts: Sequence[str]) -> None:
        """Say how many entities of a unit have several texts.

        Args:
            keys: of all the unit's texts, sorted, `[M]`.
            positions: where the text of each is, `[M]`.
            texts: the N texts.
        """
        ids, of_text = self._pairs[name].all()[1].T
        pairs = np.unique(np.stack([ids, positions[np.searchsorted(keys, of_text)]], axis=1), axis=0)
        known, first, counts = np.unique(pairs[:, 0], return_index=True, return_counts=True)
        names = self._values(self.columns[name])
        several = [place for place in np.flatnonzero(counts > 1) if names is None or known[place] in names]
        if not several:
            return
        place = several[0]
        one, other = (texts[int(position)] for position in pairs[first[place] : first[place] + 2, 1])
        index = int(known[place])
        logging.warning(
            "%d of %d values of %r, the id of entity %r, have several texts, and each is encoded; %s has %d: %r and %r",
            len(several),
            len(known) if names is None else len(names),
            self.columns[name],
            name,
            f"id {index}" if names is None else repr(names[index]),
            counts[place],
            one,
            other,
        )

    def _values(self, column: str) -> dict[int, str] | None:
        """Id -> train value; None of a meta column, whose values are not kept."""
        if self.run.feature_map.features[column]["type"] == "meta":
            return None
        try:
            return {index: value for value, index in train_ids(self.run, column)[0].items()}
        except UserError:  # a built data set without its vocabulary
            return None
