"""What LLaCTR learnt, in pictures: field vectors before and after SSFT, its course, and the weights of pairs."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import normalize

from fuxictr_llm.common.pictures import Panel, heat_maps, tuning_curves
from fuxictr_llm.common.runs import Run

from .vector_file import read_field_vectors, read_untuned_vectors


def draw(run: Run, fields: Sequence[str], tasks: Sequence[str], pair_weights: Tensor | None) -> dict[str, Figure]:
    """Name -> figure, of what there is to show: an untuned language model has no tuning.

    Args:
        run: its `field_vectors` is the file that the model was trained with.
        fields: the K fields that the backbone embeds.
        tasks: the T labels.
        pair_weights: g, `[K, K]` or `[T, K, K]`; None where FIE has no weights of pairs.
    """
    notes = run.notes.get("field_vectors") or {}
    vectors = read_field_vectors(run.params["field_vectors"], fields, exact=False)
    untuned = read_untuned_vectors(run.params["field_vectors"], fields)
    source = notes.get("source", "given")
    after = cosines("after SSFT" if untuned is not None else f"source: {source}", vectors)
    panels = [after] if untuned is None else [cosines("before SSFT", untuned), after]
    figures = {"field_similarities": heat_maps("Cosines of the field vectors", panels, fields)}
    ssft = notes.get("ssft") or {}
    losses, accuracies = ssft.get("losses") or [], ssft.get("accuracies") or []
    if losses or accuracies:
        title = "SSFT: the language model learns to name the field of a value"
        figures["ssft"] = tuning_curves(title, losses, accuracies, chance=1 / len(fields))
    if pair_weights is not None:
        weights = pair_weights.detach().cpu().numpy().reshape(-1, len(fields), len(fields))
        labels = [""] if len(weights) == 1 else [f", {task}" for task in tasks]
        panels = [
            cosines("cosines of the field vectors", vectors),
            *(
                Panel(f"pair weights learnt from them{label}", matrix, "pair weight g", signed=True)
                for label, matrix in zip(labels, weights, strict=True)
            ),
        ]
        title = "FIE: how much each pair of fields counts"
        # Weights grow far beyond the cosines, so the panels have scales of their own.
        figures["pair_weights"] = heat_maps(title, panels, fields, same_scale=False)
    return figures


def cosines(title: str, vectors: Tensor) -> Panel:
    """Cosines of vectors `[K, D_llm]` on the scale of all cosines, the same for every language model."""
    return Panel(title, cosines_of(vectors), "cosine", reach=1.0)


def cosines_of(vectors: Tensor) -> np.ndarray:
    """`[K, D_llm] -> [K, K]`."""
    normed = normalize(vectors, dim=-1)
    return (normed @ normed.T).numpy()
