"""Files that a config names are found beside it first; `--list` shows what it adds."""

from pathlib import Path

import pytest
import yaml

from fuxictr_llm.__main__ import main
from fuxictr_llm.common.errors import UserError
from fuxictr_llm.config.beside import found_beside
from fuxictr_llm.config.names import names_in
from fuxictr_llm.config.sources import read_source
from fuxictr_llm.leaderboard.plan.names import check_names
from support import edit


def test_files_beside_the_config_go_before_those_of_this_folder():
    for path in ("cfg/words.yaml", "words.yaml", "raw/train.csv", "cfg/net.py", "here.csv"):
        Path(path).parent.mkdir(exist_ok=True)
        Path(path).touch()
    given = {"field_config": "words.yaml", "train_data": "../raw/train.csv", "valid_data": "here.csv", "epochs": 1}
    given |= {"model": "net.py:Net", "method": "gone.py:M", "test_data": None, "user_info": str(Path("x").absolute())}
    found = found_beside(given, Path("cfg"))
    changed = {"field_config": "cfg/words.yaml", "train_data": "raw/train.csv", "model": "cfg/net.py:Net"}
    assert found == {**given, **changed}
    assert found_beside({"field_config": "net.py", "model": "words.yaml"}, Path("cfg")) == {
        "field_config": "net.py",
        "model": "words.yaml",
    }  # an entry's name, a backbone's


@pytest.mark.parametrize("form", ["ours", "FuxiCTR", "file"])
def test_every_form_of_a_config_finds_them(configs, form):
    Path("raw/train.csv").rename(configs / "train.csv")
    Path("words.yaml").rename(configs / "words.yaml")
    edit(configs / "dataset_config.yaml", str(Path("raw/train.csv").absolute()), "train.csv")
    edit(configs / "dataset_config.yaml", str(Path("words.yaml").absolute()), "words.yaml")
    config: Path = configs
    if form == "file":
        entry = yaml.safe_load((configs / "dataset_config.yaml").read_text())["shop"]
        config = configs / "one.yaml"
        config.write_text(yaml.safe_dump({"FM_shop": {**entry, "model": "FM", "dataset_id": "shop"}}))
    if form == "FuxiCTR":
        (configs / "method_config").rename("away")
        edit(configs / "model_config.yaml", "Base:", "FM_shop: {model: FM, dataset_id: shop}\nBase:")
    params = read_source("FM_shop", config).params
    assert params["train_data"] == str(configs / "train.csv") and params["field_config"] == str(configs / "words.yaml")


def test_the_list_shows_the_config_own_names(configs, capsys):
    entries = "MyNet: {model: net.py:MyNet}\nFM_mine: {model: FM, dataset_id: shop}\nBase:"
    edit(configs / "model_config.yaml", "Base:", entries)
    (configs / "method_config/Mine.yaml").write_text("Mine: {method: mine.py:MineModel}\n")
    assert main(["run", "--list", "--config", str(configs)]) == 0
    lines = dict(line.split(":", 1) for line in capsys.readouterr().out.splitlines())
    assert " MyNet," in lines["backbones"] and " Mine" in lines["methods"] and "shop" in lines["data sets"]
    assert lines["more expids"].split() == ["FM_mine"]
    assert names_in(None).labels and "MyNet" not in names_in(None).backbones
    (configs / "method_config/Mine.yaml").unlink()
    (configs / "method_config").rmdir()
    assert main(["run", "--list", "--config", str(configs)]) == 0
    lines = dict(line.split(":", 1) for line in capsys.readouterr().out.splitlines())
    assert "FM_mine" in lines["expids"] and not lines.keys() & {"backbones", "methods", "data sets"}
    assert main(["run", "--list", "--config", "gone"]) == 2
    assert "--config 'gone' is neither a directory nor a YAML file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((["FM", "DNNN"], ["plain"], ["shop"]), r"unknown backbone 'DNNN' in expid 'DNNN_shop'; did you mean 'DNN'\?"),
        ((["FM"], ["plain", "LLaCTRR"], ["shop"]), r"unknown method 'LLaCTRR' in .*; did you mean 'LLaCTR'\?"),
        ((["FM"], ["plian"], ["shop"]), r"unknown method 'plian' in .*; did you mean 'plain'\?"),
        ((["FM"], ["plain"], ["shop", "shopp"]), r"unknown data set 'shopp' in .*; did you mean 'shop'\?"),
        ((["FM", "MyNet"], ["plain", "LLaCTR"], ["shop"]), ""),
        ((["FM"], ["plain"], ["mine"]), ""),
        (([], ["plain"], []), ""),
    ],
)
def test_a_leaderboard_knows_its_names_at_once(configs, names, message):
    entries = "MyNet: {model: net.py:MyNet}\nFM_mine: {model: FM, dataset_id: shop}\nBase:"
    edit(configs / "model_config.yaml", "Base:", entries)
    if not message:
        check_names(*names, str(configs))
        return
    with pytest.raises(UserError, match=message):
        check_names(*names, str(configs))
