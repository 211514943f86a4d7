"""Many short texts in a few rows of a causal language model: what they share in front is computed once a row.

A packed token sees the tokens before it in its own text, and the shared beginning if its text has it; positions
count as if each text stood alone. So the hidden states are those of the single texts, without their padding.

Shape symbols: `R` rows, `T` tokens of a row, `N` texts with the shared beginning, `K` texts without it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

# Attention grows with the square of a row, so that a long row costs more than one more shared beginning.
ROW_TOKENS = 1024
# Texts of a row are numbered from 1; the shared beginning is 0, padding sees itself alone.
SHARED, PADDING = 0, -1


def pack(
    shared: list[int], texts: Sequence[list[int]], alone: Sequence[list[int]], pad: int, row_tokens: int = ROW_TOKENS
) -> dict[str, Tensor]:
    """Token ids of N texts behind a shared beginning and K texts without it, as rows for a causal model.

    Returns:
        `input_ids`, `position_ids`, `segments` `[R, T]`, `sees_shared` `[R, T]`, and `places` `[N + K, 2]`: the first
        token of each text and the one behind its last, counted through the flattened rows.
    """
    rows = _rows([*texts, *alone], len(shared), row_tokens)
    longest = len(shared) + max(sum(length for _, length in row) for row in rows)
    ids = torch.full((len(rows), longest), pad)
    positions = torch.zeros_like(ids)
    segments = torch.full_like(ids, PADDING)
    sees_shared = torch.zeros_like(ids, dtype=torch.bool)
    places = torch.zeros(len(texts) + len(alone), 2, dtype=torch.long)
    for r, row in enumerate(rows):
        end = len(shared)
        ids[r, :end], positions[r, :end], segments[r, :end] = torch.tensor(shared), torch.arange(end), SHARED
        for number, (index, length) in enumerate(row, start=1):
            behind = index < len(texts)
            tokens = texts[index] if behind else alone[index - len(texts)]
            start, end = end, end + length
            first = len(shared) if behind else 0
            ids[r, start:end], positions[r, start:end] = torch.tensor(tokens), torch.arange(first, first + length)
            segments[r, start:end], sees_shared[r, start:end] = number, behind
            places[index] = torch.tensor([r * longest + start, r * longest + end])
    return {
        "input_ids": ids,
        "position_ids": positions,
        "segments": segments,
        "sees_shared": sees_shared,
        "places": places,
    }


def _rows(texts: Sequence[list[int]], shared: int, row_tokens: int) -> list[list[tuple[int, int]]]:
    """Index and length of the texts of each row, in order; rows are filled up one after the other."""
    rows, filled = [], row_tokens
    for index, tokens in enumerate(texts):
        if filled + len(tokens) > row_tokens:
            rows.append([])
            filled = shared
        rows[-1].append((index, len(tokens)))
        filled += len(tokens)
    return rows


def attention_mask(segments: Tensor, sees_shared: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to the attention scores, `[R, 1, T, T]`: 0 where a token may look, the lowest number elsewhere."""
    order = torch.arange(segments.shape[1], device=segments.device)
    own = segments.unsqueeze(2) == segments.unsqueeze(1)
    shared = sees_shared.unsqueeze(2) & (segments == SHARED).unsqueeze(1)
    visible = (own | shared) & (order <= order.unsqueeze(1))
    mask = torch.zeros(visible.shape, dtype=dtype, device=segments.device)
    return mask.masked_fill_(~visible, torch.finfo(dtype).min).unsqueeze(1)


def pool_packed(hidden: Tensor, packed: dict[str, Tensor], ends: Tensor, num_behind: int, pooling: str) -> Tensor:
    """Hidden states `[R, T, D_llm]` -> a vector for each text `[N + K, D_llm]`.

    Args:
        ends: `[N + K]`, the place behind the last token that counts of each text.
        num_behind: N; for these the shared beginning counts in a mean.
        pooling: `last` or `mean`.
    """
    flat = hidden.flatten(0, 1)
    if pooling == "last":
        return flat[ends - 1]
    starts = packed["places"][:, 0].to(ends.device)
    order = torch.arange(len(flat), device=flat.device)
    counted = ((order >= starts.unsqueeze(1)) & (order < ends.unsqueeze(1))).to(flat.dtype)
    sums, counts = counted @ flat, counted.sum(dim=1, keepdim=True)
    shared = packed["segments"].to(hidden.device)[0] == SHARED
    behind = (torch.arange(len(ends), device=flat.device) < num_behind).to(flat.dtype).unsqueeze(1)
    sums = sums + behind * hidden[0][shared].sum(dim=0)
    return sums / (counts + behind * shared.sum())
