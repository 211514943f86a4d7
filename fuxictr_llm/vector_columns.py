"""Columns of type embedding hold vectors, which not every model takes."""

from typing import Any

UNEQUAL = "stack expects each tensor to be equal size"


def vectors_refused(model: str, feature_map: Any, error: Exception) -> str | None:
    """What a user is told of an error for the vectors of a column; None where it is for something else.

    FuxiCTR brings vectors to the width of embeddings, but not to the one number that linear parts add up.
    """
    names = [name for name, spec in feature_map.features.items() if spec["type"] == "embedding"]
    if not names or UNEQUAL not in str(error):
        return None
    return (
        f"{model} cannot take the vectors of column {names[0]!r} (type: embedding): its linear part has no weights for "
        "them; take a model without one, as DNN or DCNv2, or set active: false for the column"
    )
