"""The key of a built data set has all that changes it.

A setting that is not named here fails: say what it changes, or why it changes nothing.
"""

from pathlib import Path

from fuxictr_llm.common.files import digest_of
from fuxictr_llm.config.keys import DatasetKeys
from fuxictr_llm.data import build, splits

# Places, what is refused, how ids are used and who is asked: the raw files' digests are in the key apart.
NOT_BUILT = {"dataset_id", "data_root", "train_data", "valid_data", "test_data", "raw_data", "download", "md5"}
NOT_BUILT |= {"valid_size", "test_size", "split_type", "rebuild_dataset", "field_config", "user_info", "item_info"}
NOT_BUILT |= {"prepare", "prepare_split", "timestamp", "feature_processor", "resplit", "time_column"}


def test_built_data_sets():
    assert {*build.BUILD_KEYS} == DatasetKeys.__annotations__.keys() - NOT_BUILT
    params = {"feature_cols": []}
    before = digest_of(build._made_from(params, {}))
    for name in build.BUILD_KEYS:
        other = [{"name": "other"}] if name == "feature_cols" else "other"
        assert digest_of(build._made_from({**params, name: other}, {})) != before, name
    Path("train.csv").write_text("a")
    keys = [before, digest_of(build._made_from(params, {"train": [Path("train.csv")]}))]
    Path("train.csv").write_text("b")
    keys.append(digest_of(build._made_from(params, {"train": [Path("train.csv")]})))
    assert len({*keys}) == 3


PROCESSOR = """
from fuxictr.preprocess import FeatureProcessor

class Own(FeatureProcessor):
    def __init__(self, digits=2, **kwargs):
        super().__init__(**kwargs)
"""


def test_built_data_sets_of_ones_own_processor(monkeypatch):
    Path("own_digits.py").write_text(PROCESSOR)
    monkeypatch.syspath_prepend(".")
    params = {"feature_cols": [], "feature_processor": "own_digits:Own"}
    others = [{}, {"digits": 3}, {"feature_processor": "criteo"}]
    keys = [digest_of(build._made_from({**params, **other}, {})) for other in others]
    assert len({*keys}) == 3 and digest_of(build._made_from({**params, "verbose": 1}, {})) == keys[0]


def test_further_splits():
    for split in ("train", "valid", "test"):
        Path(f"{split}.csv").write_text("a")
    params = {f"{split}_data": f"{split}.csv" for split in ("train", "valid", "test")}
    params["resplit"] = {"by": "random", "number": 1, "of": 3}
    keys = [digest_of(splits._made_from(params))]
    for key, value in {"by": "time", "number": 2, "of": 4}.items():
        keys.append(digest_of(splits._made_from({**params, "resplit": {**params["resplit"], key: value}})))
    keys += [digest_of(splits._made_from({**params, **other})) for other in ({"time_column": "at"}, {"sep": ";"})]
    for split in ("train", "valid", "test"):
        Path(f"{split}.csv").write_text("b")
        keys.append(digest_of(splits._made_from(params)))
    assert len({*keys}) == len(keys) == 9
