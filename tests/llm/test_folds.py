"""Folds by a hash of ids, against a literal version; its values are pinned, for trained heads stand on them."""

import numpy as np
import torch

from fuxictr_llm.llm.texts.folds import mixed_fold


def signed(number):
    number %= 2**64
    return number - 2**64 if number >= 2**63 else number


def literal(ids, folds):
    mixed = 0
    for index in ids:
        mixed = signed((mixed + int(index) + 1) * 0x9E3779B97F4A7C15)
        mixed = signed(mixed ^ (mixed >> 32))
    return (mixed >> 32) % folds


def test_folds_are_the_literal_ones_of_any_type_of_ids():
    ids = np.random.default_rng(0).integers(0, 2**31 - 1, (300, 3))
    for dtype in (torch.int64, torch.int32):
        columns = torch.from_numpy(ids).to(dtype).unbind(dim=1)
        for width in (1, 2, 3):
            assert mixed_fold(columns[:width], 5).tolist() == [literal(row[:width], 5) for row in ids]
    assert mixed_fold([torch.arange(12), torch.arange(12) * 7], 5).tolist() == PINNED


PINNED = [2, 0, 2, 4, 2, 0, 4, 3, 1, 2, 4, 4]
