"""A run is found by its folder or one of its files, in a folder of its own and as earlier versions left it."""

from pathlib import Path

import pytest
from layouts import LAYOUTS

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.files import write_json
from fuxictr_llm.common.run_files import RECORD, find_run, name_of_run, record_of_run, records_in, run_files

SHOP = Path("checkpoints/shop")


def made(model_id, files_of=run_files):
    """The record of a run, written."""
    record = Path(f"{files_of(SHOP, model_id)}{RECORD}")
    record.parent.mkdir(parents=True, exist_ok=True)
    write_json(record, {})
    return record


@LAYOUTS
def test_a_run_is_named_by_its_folder_or_any_of_its_files(files_of):
    record, files = made("FM_shop", files_of), files_of(SHOP, "FM_shop")
    for name in (SHOP / "FM_shop", files, f"{files}.model", record):
        assert record_of_run(name) == find_run(name) == record
    assert name_of_run(record) == str(SHOP / "FM_shop")


@LAYOUTS
def test_the_only_run_on_a_data_set_needs_no_name_and_of_several_one_is_named(files_of):
    first = made("FM_shop", files_of)
    assert find_run(SHOP) == first
    second = made("LR_shop", files_of)
    assert records_in(SHOP) == [first, second]
    with pytest.raises(UserError, match=f"holds 2 runs; name one: {SHOP}/FM_shop, {SHOP}/LR_shop$"):
        find_run(SHOP)
    with pytest.raises(UserError, match=f"unknown run '{SHOP}/LM_shop'; did you mean .* known: .*--expid LM_shop"):
        find_run(SHOP / "LM_shop")


def test_a_run_in_a_folder_of_its_own_goes_before_one_of_an_earlier_version():
    made("FM_shop", Path)
    own = made("FM_shop")
    assert find_run(SHOP / "FM_shop") == own


@pytest.mark.parametrize("name", ["", ".", "..", "/", "absent"])
def test_what_names_no_run_is_none(name):
    assert record_of_run(name) is None


def test_a_name_that_cannot_be_looked_for_is_one_line():
    with pytest.raises(UserError, match=r"cannot look for the run 'xxx.*': File name too long$"):
        find_run("x" * 300)
