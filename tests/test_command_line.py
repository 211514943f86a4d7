"""The commands as users type them: exit codes, messages, lists, lazy imports, an installed wheel."""

import os
import re
import runpy
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import yaml

from fuxictr_llm.__main__ import main
from support import as_arguments
from support_process import run_code, run_codes_at_once

ROOT = Path(__file__).parents[1]


def python(*args, **kwargs):
    return subprocess.run(
        [sys.executable, *map(str, args)], capture_output=True, text=True, check=False, timeout=300, **kwargs
    )


def test_run_expid_trains_and_ends_with_the_test_metrics(configs, capsys, monkeypatch):
    args = ["--config", str(configs), "--expid", "FM_shop", "--set", "epochs=1", "--seed", "3"]
    monkeypatch.setattr(sys, "argv", ["run_expid.py", *args])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "run_expid.py"), run_name="__main__")
    log = capsys.readouterr().err
    assert ended.value.code == 0, log
    metrics = re.findall(r"\[Metrics\] (.*)", log)
    assert f"[test] {metrics[-1]}" in Path("my_configs.csv").read_text()
    assert "Summary" in log.split("[Metrics]")[-1]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--expid", "DeepFN_movielens100k"], "error: unknown backbone 'DeepFN'"),
        (["--expid", "DeepFM_movielens100k", "--set", "epoch=1"], "error: unknown config key 'epoch'"),
        (["--expid", "DeepFM_movielens100k", "--set", "epochs=many"], "error: config key 'epochs' is 'many'"),
        (["--expid", "DeepFM_movielens100k", "--set", "epochs"], "error: --set 'epochs' is not key=value"),
        (["--expid", "DeepFM_movielens100k", "--config", "absent"], "error: --config 'absent'"),
        (["--expid", "DeepFM_movielens100k", "--to", "x"], "error: --to goes with --print-config"),
        ([], "error: --expid is missing"),
    ],
)
def test_bad_arguments_are_one_line_and_exit_code_2(args, message, capsys):
    assert main(["run", *args]) == 2
    error = capsys.readouterr().err
    assert error.startswith(message) and error.count("\n") == 1


@pytest.mark.parametrize(
    ("gpu", "message"), [("99", "--gpu 99: this machine has no GPU that torch can use"), ("-2", "--gpu -2 is neither")]
)
def test_a_gpu_that_is_not_there_is_exit_code_2(configs, capsys, monkeypatch, gpu, message):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert main(["run", "--config", str(configs), "--expid", "FM_shop", "--gpu", gpu]) == 2
    assert message in capsys.readouterr().err


def test_print_config_prints_a_config_and_writes_a_directory(configs, capsys):
    assert main(["run", "--config", str(configs), "--expid", "FM_LLaCTR_shop", "--print-config"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)["FM_LLaCTR_shop"]
    assert (printed["model"], printed["method"], printed["debug_mode"]) == ("FM", "LLaCTR", False)
    assert main(["run", "--config", str(configs), "--expid", "FM_shop", "--print-config", "--to", "out"]) == 0
    assert {path.name for path in Path("out").iterdir()} == {"model_config.yaml", "dataset_config.yaml"}


def test_a_typo_is_said_before_torch_is_there_whose_waiting_threads_leave_their_cores():
    """Waiting threads, on a busy machine, take five times as long. libgomp reads the variable when torch brings it."""
    code = """
        import os, sys
        from fuxictr_llm.__main__ import main
        typos = "A_B", "DeepFM_LLaCRT_criteo", "DeepFMM_LLaCTR_criteo"
        codes = {main(["run", "--expid", expid]) for expid in typos}
        for backbone, method, data in (("FMM", "plain", "criteo"), ("FM", "ELECT", "criteo"), ("FM", "plain", "crit")):
            codes.add(main(["leaderboard", "--backbones", backbone, "--methods", method, "--datasets", data]))
        print(*codes, "torch" in sys.modules, os.environ.get("GOMP_SPINCOUNT"))
    """
    without = {key: value for key, value in os.environ.items() if key not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    printed = python("-c", textwrap.dedent(code), env={**without, "OMP_WAIT_POLICY": "ACTIVE"})
    assert printed.stdout.split() == ["2", "False", "None"]  # as the user has it
    assert python("-c", textwrap.dedent(code), env=without).stdout.split() == ["2", "False", "10000"]


def test_list_says_what_exists(capsys):
    assert main(["run", "--list"]) == 0
    printed = capsys.readouterr().out
    for name in ("DeepFM", "WuKong", "LLaCTR", "movielens100k_time", "SmolLM2-135M-Instruct"):
        assert name in printed


def test_prepare_and_encode_stop_before_training(configs, tiny_settings, capsys):
    assert main(["prepare", "--config", str(configs), "--expid", "FM_shop"]) == 0
    built = Path(capsys.readouterr().out.strip())
    assert (built / "train.parquet").is_file()
    settings = as_arguments(tiny_settings)
    assert main(["encode", "--config", str(configs), "--expid", "FM_LLaCTR_shop", *settings]) == 0
    assert Path(capsys.readouterr().out.strip()).name == "field_vectors.safetensors"
    assert not Path("checkpoints").exists()
    assert main(["encode", "--config", str(configs), "--expid", "FM_shop"]) == 2


def test_two_first_runs_at_once_share_the_tuning(configs, tiny_settings):
    settings = as_arguments({**tiny_settings, "ssft_epochs": 20})
    Path("data").mkdir()
    assert main(["prepare", "--config", str(configs), "--expid", "FM_shop"]) == 0
    args = ["encode", "--config", str(configs), "--expid", "FM_LLaCTR_shop", *settings]
    code = f"import sys; from fuxictr_llm.__main__ import main; sys.exit(main({args!r}))"
    one, other = run_codes_at_once(code, code)
    assert (one.returncode, other.returncode) == (0, 0), (one.stderr, other.stderr)
    assert one.stdout == other.stdout
    assert one.stdout.strip()
    assert ("are cached" in one.stderr) + ("are cached" in other.stderr) == 1


# Without checkpoints: whether an epoch ends, and leaves one, before the signal comes would be chance.
KEYS = {"epochs": 100000, "early_stop_patience": 100000, "checkpoint_minutes": "null"}
ENDLESS = ("--expid", "DeepFM_shop", *as_arguments(KEYS))


def assert_tidied_up(errors, how):
    assert f"{how}; what was finished is kept" in errors and "Traceback" not in errors
    assert [path.suffix for path in Path("checkpoints/shop").glob("*/*")] == [".log"]


def test_ctrl_c_leaves_no_half_weights(configs):
    command = [sys.executable, ROOT / "run_expid.py", "--config", configs, *ENDLESS]
    # A shell that runs the tests in its background has them ignore Ctrl-C, and what they start would do so as well.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, before)
    try:
        next(line for line in running.stderr if "Save best model" in line)
        running.send_signal(signal.SIGINT)
        _, rest = running.communicate(timeout=300)
    finally:
        running.kill()
    assert running.returncode == 130
    assert_tidied_up(rest, "interrupted")


def test_kill_leaves_no_half_weights(configs):
    code = f"""
        import os, signal, sys, threading, time
        from pathlib import Path
        from fuxictr_llm.__main__ import main

        def kill():
            while not any("Save best model" in path.read_text() for path in Path("checkpoints/shop").glob("*/*.log")):
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGTERM)

        threading.Thread(target=kill, daemon=True).start()
        sys.exit(main(["run", "--config", {str(configs)!r}, *{ENDLESS!r}]))
    """
    ended = run_code(textwrap.dedent(code))
    assert ended.returncode == 143, ended.stderr
    assert_tidied_up(ended.stderr, "terminated")


def test_a_run_with_cached_vectors_imports_no_language_library(configs, tiny_settings):
    settings = as_arguments(tiny_settings)
    args = ["run", "--config", str(configs), "--expid", "FM_LLaCTR_shop", *settings]
    assert main(args) == 0
    code = f"import sys; from fuxictr_llm.__main__ import main; print(main({args!r})); print('peft' in sys.modules, 'transformers' in sys.modules)"
    ended = run_code(code)
    assert ended.stdout.split() == ["0", "False", "False"], ended.stderr


def test_no_file_imports_a_top_level_model_zoo():
    pattern = re.compile(r"^\s*(import model_zoo|from model_zoo)", re.MULTILINE)
    files = [path for folder in ("fuxictr_llm", "model_zoo", "tests") for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 30 and not [path for path in files if pattern.search(path.read_text())]


FUXICTR_SCRIPT = """
import logging, os, sys
from fuxictr.features import FeatureMap
from fuxictr.preprocess import FeatureProcessor, build_dataset
from fuxictr.pytorch.dataloaders import RankDataLoader
from fuxictr.pytorch.torch_utils import seed_everything
from fuxictr.utils import load_config, set_logger
import fuxictr_llm.model_zoo as src

params = load_config(sys.argv[1], sys.argv[2])
params["gpu"] = -1
set_logger(params)
seed_everything(seed=params["seed"])
data_dir = os.path.join(params["data_root"], params["dataset_id"])
encoder = FeatureProcessor(**params)
params["train_data"], params["valid_data"], params["test_data"] = build_dataset(encoder, **params)
feature_map = FeatureMap(params["dataset_id"], data_dir)
feature_map.load(os.path.join(data_dir, "feature_map.json"), params)
model = getattr(src, params["model"])(feature_map, **params)
model.count_parameters()
train_gen, valid_gen = RankDataLoader(feature_map, stage="train", **params)
model.fit(train_gen, validation_data=valid_gen, **params)
print(type(model).__name__, model.evaluate(RankDataLoader(feature_map, stage="test", **params)))
"""


@pytest.mark.ray
def test_a_script_in_fuxictrs_form_trains_our_models_by_their_name(configs, tiny_settings, capsys, monkeypatch):
    settings = as_arguments(tiny_settings)
    assert main(["encode", "--config", str(configs), "--expid", "FM_LLaCTR_shop", *settings]) == 0
    vectors = capsys.readouterr().out.strip()
    settings = as_arguments({"field_vectors": vectors, "epochs": 1})
    args = ["--config", str(configs), "--expid", "FM_LLaCTR_shop", *settings]
    assert main(["run", *args, "--print-config", "--to", "written"]) == 0
    Path("script.py").write_text(FUXICTR_SCRIPT)
    monkeypatch.setattr(sys, "argv", ["script.py", "written", "FM_LLaCTR_shop"])
    runpy.run_path("script.py")
    printed = capsys.readouterr().out
    assert "FM_LLaCTR OrderedDict" in printed or "FM_LLaCTR {" in printed


def test_an_installed_wheel_works_outside_the_checkout(tmp_path, configs):
    """Built and unpacked into a folder of its own, which comes first on the path."""
    built = python("-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", tmp_path / "wheels", ROOT)
    assert built.returncode == 0, built.stderr
    (wheel,) = (tmp_path / "wheels").iterdir()
    target = tmp_path / "site"
    assert python("-m", "pip", "install", "-q", "--no-deps", "--target", target, wheel).returncode == 0
    environment = {**os.environ, "PYTHONPATH": str(target)}
    code = textwrap.dedent(
        f"""
        import fuxictr_llm.model_zoo as zoo, fuxictr_llm.benchmark_configs as configs
        assert zoo.__file__.startswith({str(target)!r}), zoo.__file__
        assert list(configs.__path__)[0].startswith({str(target)!r}), configs.__path__
        import runpy, sys
        from fuxictr_llm.__main__ import main
        main(["run", "--list"])
        sys.argv[1:] = ["run", "--config", {str(configs)!r}, "--expid", "FinalMLP_shop"]
        runpy.run_module("fuxictr_llm", run_name="__main__")
        """
    )
    done = python("-c", code, env=environment)
    assert done.returncode == 0, done.stderr
    assert "DeepFM" in done.stdout, done.stderr
    assert "movielens100k" in done.stdout, done.stderr
    assert "[Metrics]" in done.stderr
    done = python(target / "bin" / "fuxictr-llm", "run", "--help", env=environment)
    assert done.stdout.startswith("usage: fuxictr-llm run "), done.stderr


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        (
            "raw/test.csv",
            "error: data file '{place}/raw/test.csv' is missing; check train_data, valid_data and test_data",
        ),
        ("raw", "error: data file '{place}/raw/train.csv' is missing"),
    ],
)
def test_a_data_file_that_is_missing_is_named_whole_and_at_once(configs, tmp_path, capsys, gone, message):
    path = configs / "dataset_config.yaml"
    path.write_text(path.read_text().replace(f"{tmp_path}/raw", "raw"))  # as the tests run in its folder
    Path(gone).rename("elsewhere")
    assert main(["run", "--config", str(configs), "--expid", "FM_shop"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(message.format(place=tmp_path)) and error.count("\n") == 1  # no dump of settings before
    assert not Path("checkpoints").exists() and not Path("data").exists()


def test_published_files_that_are_missing_are_named_before_the_settings(capsys, tmp_path):
    assert main(["run", "--expid", "DeepFM_criteo_x1"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: data set 'criteo_x1': '{tmp_path}/data/raw/criteo_x1' lacks train.csv")
    assert "Params" not in error and not Path("checkpoints").exists()
