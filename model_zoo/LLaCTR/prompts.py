"""The prompts of SSFT: given a value and the candidate fields, which field is it of?

What all prompts of a data set share, the candidates included, comes first and the value last, so that
the common prefix could be computed once.
"""

from dataclasses import dataclass

import numpy as np

from fuxictr_llm.llm.catalog import FieldCatalog

# What stands between a value and the field's words when the language model is to generate them.
ANSWER = "\nField:"
# One value in so many counts as frequent.
FREQUENT = 10


@dataclass(frozen=True)
class Prompt:
    """One training example: a value and the index of the field it belongs to."""

    value: str
    field: int


def common_prefix(catalog: FieldCatalog) -> str:
    """Task description and candidate fields."""
    candidates = "; ".join(field.text for field in catalog.fields)
    return f"Data: {catalog.about}.\nFields: {candidates}.\nTo which field does this value belong?\nValue:"


def sample_prompts(
    catalog: FieldCatalog, per_field: int, held_out: float, seed: int
) -> tuple[list[Prompt], list[Prompt]]:
    """At most `per_field` distinct train values of each field, frequent and rare ones, as (tuning, held out).

    A value that occurs in several fields is kept for each of them. A share `held_out` of each field's values is
    set apart to measure with; a field keeps at least one value for tuning. Fields without values in words
    (embeddings) have no prompts.
    """
    generator = np.random.default_rng(seed)
    tuning, apart = [], []
    for index, field in enumerate(catalog.fields):
        values = list(dict.fromkeys(value for value in field.values if value.strip()))
        prompts = [Prompt(values[position], index) for position in _sample(len(values), per_field, generator)]
        cut = len(prompts) - int(len(prompts) * held_out)
        tuning += prompts[:cut]
        apart += prompts[cut:]
    return [tuning[position] for position in generator.permutation(len(tuning))], apart


def _sample(count: int, wanted: int, generator: np.random.Generator) -> list[int]:
    """Positions out of `count`, the most frequent value being 0: half of them frequent, the rest from all others."""
    if count <= wanted:
        return generator.permutation(count).tolist()
    half = -(-wanted // 2)
    frequent = max(half, count // FREQUENT)
    chosen = [*generator.choice(frequent, half, replace=False)]
    chosen += [*(frequent + generator.choice(count - frequent, wanted - half, replace=False))]
    return generator.permutation(chosen).tolist()
