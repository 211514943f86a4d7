"""`--dry-run`: what a command would use, without doing anything."""

import json
from pathlib import Path

from fuxictr_llm.__main__ import main
from fuxictr_llm.common.files import write_json
from fuxictr_llm.common.stored import size_text

RECORD = {"config": {"model": "FM", "method": None}, "stages": {"train": {"seconds": 40.0}, "test": {"seconds": 2.0}}}


def test_a_run_says_its_device_data_memory_and_time(configs, capsys):
    args = ["run", "--config", str(configs), "--expid", "FM_shop", "--dry-run"]
    assert main(args) == 0
    where, data, memory, time = capsys.readouterr().out.splitlines()
    assert where == "where: the CPU, 1 processes of 1 threads" and time == "time: no estimate, as no such run is done"
    raw = sum(path.stat().st_size for path in Path("raw").iterdir())
    assert data == f"data set shop: to be built, from {size_text(raw)} of raw files"
    assert memory.startswith("memory: no estimate")
    for name, config in (("a", {}), ("b", {"model": "LR"})):  # the second is of another backbone
        record = {**RECORD, "config": {**RECORD["config"], **config}, "peak_memory": {"process_mib": 954.0}}
        Path("checkpoints/shop").mkdir(parents=True, exist_ok=True)
        write_json(Path(f"checkpoints/shop/{name}.run.json"), record)
    Path("checkpoints/shop/c.run.json").write_text(json.dumps(["damaged"]))
    assert main(args) == 0
    *_, memory, time = capsys.readouterr().out.splitlines()
    assert memory.startswith("memory: 1 x 1.0 GB, the most that such a run took; ")
    assert time == "time: about 42 s, as 1 earlier runs took"
    assert not Path("data").exists()


def test_encoding_names_the_language_model_and_asks_nothing(configs, capsys):
    settings = ["--set", "language_model=somebody/large"]
    args = ["encode", "--config", str(configs), "--expid", "FM_LLaCTR_shop", "--dry-run", *settings]
    assert main(args) == 0
    assert "language model somebody/large: asked once, " in capsys.readouterr().out
    assert not Path("data").exists() and not Path("cache").exists()
    assert main(["run", "--config", str(configs), "--expid", "FM_shop", "--dry-run", "--print-config"]) == 2
