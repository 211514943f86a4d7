"""Entries and files of a config directory that nothing reads are named."""

import logging
import re

import pytest

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.config.resolve import load_experiment


def told(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("model_config/a.yaml", "DeepFM_shp: {epochs: 9}", "entry 'DeepFM_shp' .*; did you mean 'DeepFM_shop'?"),
        ("model_config/a.yaml", "DeepFN: {epochs: 9}", "entry 'DeepFN' .*; did you mean 'DeepFM'?"),
        ("model_config/a.yaml", "base: {epochs: 9}", "entry 'base' .*; did you mean 'Base'?"),
        ("model_config/a.yaml", "DeepFM_LLaCT_shop: {epochs: 9}", "did you mean 'DeepFM_LLaCTR_shop'?"),
        ("method_config/a.yaml", "LLaCTR_shp: {lambda_fre: 9}", "entry 'LLaCTR_shp' .*; did you mean 'LLaCTR_shop'?"),
        ("method_config/a.yaml", "LLaCTRR: {lambda_fre: 9}", "did you mean 'LLaCTR'?"),
        ("model_config/a.yml", "DeepFM_shop: {epochs: 9}", "a.yml' is not read: FuxiCTR's configs end in .yaml"),
        ("dataset_config.yml", "shop: {}", "dataset_config.yml' is not read"),
    ],
)
def test_what_nothing_reads_is_named(configs, caplog, file, text, message):
    (configs / "model_config").mkdir()
    (configs / "model_config.yaml").rename(configs / "model_config" / "mine.yaml")
    (configs / file).write_text(text)
    load_experiment("DeepFM_LLaCTR_shop", configs)
    (warning,) = told(caplog)
    assert re.search(message, warning), warning
    load_experiment("FM_shop", configs)  # once is enough
    assert len(told(caplog)) == 1


def test_a_folder_beside_the_file_of_its_name_is_named(configs, caplog):
    (configs / "model_config").mkdir()
    (configs / "model_config" / "DeepFM.yaml").write_text("DeepFM_shop: {epochs: 77}")
    assert load_experiment("DeepFM_shop", configs).params["epochs"] == 2
    assert "model_config' is not read, because model_config.yaml is there" in caplog.text


def test_entries_that_are_read_are_not_named(configs, caplog, tmp_path):
    (configs / "method_config" / "a.yaml").write_text(
        "LLaCTR: {lambda_fre: 1}\nLLaCTR_shop: {}\nDeepFM_LLaCTR_shop: {}\nELEC_movielens100k: {alpha: 1}\n"
    )
    with (configs / "model_config.yaml").open("a") as file:
        file.write(
            "\nDeepFM_shop: {}\nDNN: {}\nFM_criteo_x1: {}\nFM_ELEC_shop: {}\nMine: {model: FM, dataset_id: shop}\n"
            f"Net: {{model: '{tmp_path}/net.py:Net'}}\nNet_shop: {{}}\nNet_LLaCTR_shop: {{}}\nAOANet_any: "
            "{model: AOANet, dataset_id: shop}\n"
        )
    load_experiment("DeepFM_LLaCTR_shop", configs)
    assert told(caplog) == []


def test_a_value_that_holds_itself_is_one_line(configs):
    with (configs / "model_config.yaml").open("a") as file:
        file.write("\nDeepFM_shop: {feature_config: &a [*a]}\n")
    with pytest.raises(UserError, match="holds itself"):
        load_experiment("DeepFM_shop", configs)
