"""What kind of language model it is, found out by asking it: names of classes and keys of a config do not say.

Shape symbols: `N` texts, `L` tokens, `D_llm` width of the language model.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

# How far states may be off each other, as a share of their length, and still be the same but for rounding.
ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 0.01}
PROBED_TOKENS = 8
# Up to so many parameters are widened to float32 to find something out, where rounding does not blur the answer.
MOST_WIDENED = 10**9


@dataclass(frozen=True)
class Nature:
    """What a network does with texts.

    Attributes:
        width: D_llm.
        causal: a token's state depends on it and those before it alone.
        ignores_padding: what is behind a text and masked does not change its states.
    """

    width: int
    causal: bool
    ignores_padding: bool


@torch.no_grad()
def probe(network: nn.Module, tokens: Sequence[int], padding: int) -> Nature:
    """Ask a network, in evaluation mode, for the states of some tokens.

    Args:
        tokens: ids of some ordinary tokens, no two alike.
        padding: the id to fill up with.

    Raises:
        ValueError: it gives no finite state for each token.
        Exception: whatever it raises where it does not read texts.
    """
    long, short = list(tokens), list(tokens[: len(tokens) // 2])
    width = _states(network, [long]).shape[-1]  # as it will be asked
    with widened(network):
        whole, other_end = _states(network, [long]), _states(network, [[*long[:-1], long[0]]])
        causal = _same(whole[0, :-1], other_end[0, :-1])
        if causal:  # then padding, which stands behind, cannot matter
            return Nature(width, causal, ignores_padding=True)
        alone = _states(network, [short])
        padded = _states(network, [long, short + [padding] * (len(long) - len(short))], [len(long), len(short)])
        return Nature(width, causal, ignores_padding=_same(alone[0], padded[1, : len(short)]))


@contextmanager
def widened(model: nn.Module) -> Iterator[None]:
    """For the block, the weights of a small model are float32."""
    narrow = [(parameter, parameter.data) for parameter in model.parameters() if parameter.is_floating_point()]
    if sum(weights.numel() for _, weights in narrow) > MOST_WIDENED:
        yield
        return
    for parameter, weights in narrow:
        parameter.data = weights.float()
    try:
        yield
    finally:
        for parameter, weights in narrow:
            parameter.data = weights


def _states(network: nn.Module, rows: list[list[int]], lengths: Sequence[int] | None = None) -> Tensor:
    """`[N, L, D_llm]`."""
    device = next(network.parameters()).device
    ids = torch.tensor(rows, device=device)
    real = torch.tensor(lengths or [len(rows[0])] * len(rows), device=device).unsqueeze(1)
    mask = (torch.arange(ids.shape[1], device=device) < real).long()
    states = network(input_ids=ids, attention_mask=mask).last_hidden_state
    if states.dim() != 3 or states.shape[:2] != ids.shape:
        raise ValueError(f"of {ids.shape[1]} tokens it gives states of shape {list(states.shape)}")
    if not bool(torch.isfinite(states[mask.bool()]).all()):
        raise ValueError("its hidden states are not finite numbers")
    return states


def _same(states: Tensor, others: Tensor) -> bool:
    """Whether no token's state is off by more than rounding."""
    tolerance = ROUNDING.get(states.dtype, max(ROUNDING.values()))
    lengths = states.float().norm(dim=-1).clamp(min=torch.finfo(torch.float32).tiny)
    return ((states.float() - others.float()).norm(dim=-1) / lengths).max().item() <= tolerance
