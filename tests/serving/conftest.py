"""Fixtures: a trained run on the small data set `shop`, and its export."""

import shutil

import pytest

from fuxictr_llm.serving.export import export_run
from support_serving import run_of


@pytest.fixture(scope="module")
def trained_shop(tmp_path_factory):
    """A run on `shop`, its config and its export, made once."""
    from conftest import write_configs

    folder = tmp_path_factory.mktemp("shop")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        result, run = run_of("DeepFM_shop", write_configs(folder), data_root="data")
        export_run(run, "served")
    return folder, result, run


@pytest.fixture
def shop(trained_shop):
    """A copy of it in the test's folder: the result, and the run as a command takes it."""
    folder, result, run = trained_shop
    shutil.copytree(folder, ".", dirs_exist_ok=True)
    return result, run
