"""The bars of huggingface_hub and transformers are shown as our progress is, and say nothing of what is short."""

from pathlib import Path

import pytest
from huggingface_hub import _snapshot_download as hub

from fuxictr_llm.common.progress import quiet_if
from fuxictr_llm.llm.bars import Bar, shown_as_ours
from fuxictr_llm.llm.model_files import load_folder


def lines_of(capfd):
    out, err = capfd.readouterr()
    assert not out and "\r" not in err
    return err.splitlines()


def test_loading_weights_is_shown(tiny_llm, capfd, shown_at_once):
    load_folder(Path(tiny_llm), "float32")
    lines = lines_of(capfd)
    assert lines and all(line.startswith("loading weights: ") and "parts/s" in line for line in lines)


@pytest.mark.parametrize("why", ["short", "verbose 0"])
def test_loading_weights_says_nothing(tiny_llm, capfd, why, request):
    if why == "verbose 0":
        request.getfixturevalue("shown_at_once")
    with quiet_if(why == "verbose 0"):
        load_folder(Path(tiny_llm), "float32")
    assert lines_of(capfd) == []


def test_the_bars_of_transformers_are_its_own_afterwards(capfd):
    from transformers.utils import logging

    with shown_as_ours():
        assert isinstance(logging.tqdm([]), Bar)
    assert not isinstance(logging.tqdm([]), Bar)


def test_a_download_from_the_hub_is_shown(capfd, shown_at_once):
    """As snapshot_download uses the class: the total grows with each file, and threads count."""
    bar = hub._create_progress_bar(cls=Bar, log_level=0, name="x", desc="Downloading bytes", total=0, unit="B")
    for size in (1000, 3000):
        bar.total += size
        bar.refresh()
    hub._set_aggregate_rate_postfix(bar)
    assert hub.hf_thread_map(bar.update, [1000] * 3, tqdm_class=Bar, desc="Fetching 3 files") == [None] * 3
    bar.set_description("Download complete")
    bar.close()
    lines = lines_of(capfd)
    assert [line.split(" [")[0] for line in lines if line.startswith("down")] == [
        *(f"downloading bytes: {share} {done}/4.00k" for share, done in ((" 25%", "1.00k"), (" 50%", "2.00k"))),
        *[" 75% 3.00k/4.00k".join(["downloading bytes: ", ""])] * 2,
    ]
    assert any(line.startswith("fetching 3 files:  33% 1/3 [") for line in lines)
    assert all("/s" in line or "?B" in line for line in lines)


def test_an_error_ends_a_bar_without_a_last_line(capfd, shown_at_once):
    with pytest.raises(KeyError), Bar(desc="Loading", total=2) as bar:
        bar.update(1)
        raise KeyError
    assert len(lines_of(capfd)) == 1
