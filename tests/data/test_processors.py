"""`feature_processor:` finds FuxiCTR's or anyone's class; what does not fit is one line, and a change is noticed."""

import sys
from pathlib import Path

import pytest

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.config.resolve import load_experiment
from fuxictr_llm.data.build import built_data
from fuxictr_llm.data.processors import code_of, find_processor

MINE = """
import polars as pl
from fuxictr.preprocess import FeatureProcessor

class Shouting(FeatureProcessor):
    def shout(self, name):
        return pl.col(name).str.to_uppercase()

class Other:
    pass
"""


@pytest.fixture
def params(configs, tmp_path, monkeypatch):
    (tmp_path / "my_processors.py").write_text(MINE)
    (tmp_path / "broken_processors.py").write_text("import no_such_package\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_processors", raising=False)  # that of the last test
    return load_experiment("DeepFM_shop", configs).params


def with_column(params, **column):
    params["feature_cols"] = [{"name": "color", "active": True, "dtype": "str", "type": "categorical", **column}]
    return params


def vocabulary(params):
    built_data(params)
    return (Path(params["data_root"]) / "shop" / "feature_vocab.json").read_text()


def test_a_class_of_ones_own_makes_the_columns(params):
    with_column(params, preprocess="shout")["feature_processor"] = "my_processors:Shouting"
    assert '"RED"' in vocabulary(params) and '"red"' not in vocabulary(params)


def test_another_processor_or_a_change_of_its_code_builds_anew(params, tmp_path, caplog):
    with_column(params)
    built_data(params)
    stamp = Path(params["data_root"], "shop", "build.json").stat().st_mtime_ns
    for change in ("named", "edited"):
        params["feature_processor"] = "my_processors:Shouting"
        if change == "edited":
            (tmp_path / "my_processors.py").write_text(MINE + "# edited\n")
        built_data(params)
        later = Path(params["data_root"], "shop", "build.json").stat().st_mtime_ns
        assert later > stamp, change
        stamp = later
        built_data(params)
        assert Path(params["data_root"], "shop", "build.json").stat().st_mtime_ns == stamp
    assert caplog.text.count("changed since it was built: settings") == 2


def test_a_change_of_a_processors_base_class_is_noticed(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(".")
    base = "from fuxictr.preprocess import FeatureProcessor\n\n\nclass Base(FeatureProcessor):\n    pass\n"
    Path("own_base.py").write_text(base)
    Path("own_processor.py").write_text("from own_base import Base\n\n\nclass Own(Base):\n    pass\n")
    before = code_of("own_processor:Own")
    Path("own_base.py").write_text(base + "# edited\n")
    assert before
    assert code_of("own_processor:Own") != before
    assert code_of("criteo") is None


@pytest.mark.parametrize(
    ("name", "column", "message"),
    [
        ("critoe", {}, "unknown feature_processor 'critoe'; did you mean 'criteo'"),
        ("no_such_module:Mine", {}, "feature_processor 'no_such_module:Mine': importing 'no_such_module' failed: Module"),
        ("broken_processors:Mine", {}, "importing 'broken_processors' failed: ModuleNotFoundError"),
        ("my_processors:Shoutin", {}, "unknown class 'Shoutin' in feature_processor 'my_processors:Shoutin'; did you mean 'Shouting'"),
        ("my_processors:Other", {}, "'my_processors:Other' is not a subclass of .*FeatureProcessor"),
        ("my_processors:Shouting", {"preprocess": "shuot"}, "unknown function 'shuot' in preprocess of column 'color'; did you mean 'shout'"),
        (None, {"preprocess": "copyfrom(city)"}, "unknown function 'copyfrom' .*did you mean 'copy_from'"),
        (None, {"preprocess": "convert_hour"}, r"names 'convert_hour', which needs feature_processor: avazu \(got None\)"),
        (None, {"remap": False}, "column 'color': FuxiCTR 2.3 cannot build remap: false here"),
        ("criteo", {"category_processor": "quantile_bucket"}, "column 'color': FuxiCTR 2.3 cannot build category_processor 'quantile_bucket'"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_line_and_builds_nothing(params, name, column, message):
    with_column(params, **column)["feature_processor"] = name
    with pytest.raises(UserError, match=message) as error:
        built_data(params)
    assert "\n" not in str(error.value) and not (Path(params["data_root"]) / "shop").exists()


def test_fuxictrs_own_are_known_by_short_names(params):
    for name in ("avazu", "criteo", "kkbox"):
        params["feature_processor"] = name
        assert find_processor(params).__module__ == f"fuxictr.datasets.{name}"
