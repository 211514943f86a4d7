"""Vectors do not depend on how many threads make them, as torch's own sums do."""

import numpy as np
import pytest
import torch

from fuxictr_llm.llm.progress import UnfinishedShard
from fuxictr_llm.llm.threads import each_in_one_thread
from fuxictr_llm.llm.vectors.values import shaped


def with_threads(count, make):
    torch.set_num_threads(count)
    made = make()
    assert torch.get_num_threads() == count
    return made


def test_sums_are_the_same_for_any_number_of_threads():
    parts = [torch.randn(2**19, generator=torch.Generator().manual_seed(seed)) for seed in range(6)]
    sums = [with_threads(count, lambda: list(each_in_one_thread(torch.sum, parts))) for count in (1, 2, 5)]
    assert sums[0] == sums[1] == sums[2] == with_threads(1, lambda: [part.sum() for part in parts])


def test_an_error_comes_through_and_ends_what_is_left():
    def fails(item):
        raise ValueError("no")

    torch.set_num_threads(2)
    with pytest.raises(ValueError, match="no"):
        list(each_in_one_thread(fails, range(1000)))
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("kind", ["tiny_llm", "tiny_encoder"])
def test_texts_have_the_same_vectors(kind, request, tmp_path):
    from fuxictr_llm.llm.language_model import load_language_model

    model = load_language_model(request.getfixturevalue(kind), "float32", "auto", gpu=-1)
    texts = [" ".join(["red", "green", "Oslo"][: 1 + index % 3] * (1 + index % 40)) for index in range(150)] + [""]
    one, three = (with_threads(count, lambda: model.encode(texts)) for count in (1, 3))
    assert torch.equal(one, three) and not one.requires_grad

    file, shown = tmp_path / "part", []
    for count in (1, 3):  # the second time half of the batches are in the file
        made = with_threads(count, lambda: model.encode(texts, kept=UnfinishedShard(file, shown.append)))
        assert torch.equal(made, one) and sum(shown) == 150
        shown.clear()
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def test_reduced_vectors_are_made_by_one_thread_of_numpy(monkeypatch):
    from sklearn.decomposition import PCA
    from threadpoolctl import threadpool_info

    threads, fit = [], PCA.fit_transform

    def noted(self, *args, **kwargs):
        threads.extend(each["num_threads"] for each in threadpool_info() if each["user_api"] == "blas")
        return fit(self, *args, **kwargs)

    monkeypatch.setattr(PCA, "fit_transform", noted)
    shaped(np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32), 3, 1.0)
    assert {*threads} == {1}
