"""SSFT under torchrun: two processes on the CPU end with the vectors of one."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from fuxictr_llm.__main__ import main
from fuxictr_llm.common.errors import UserError
from fuxictr_llm.llm import lora
from fuxictr_llm.model_zoo.LLaCTR.config import FieldVectorsConfig
from fuxictr_llm.model_zoo.LLaCTR.prompts import sample_prompts
from fuxictr_llm.model_zoo.LLaCTR.ssft import tune
from fuxictr_llm.model_zoo.LLaCTR.vector_file import read_field_vectors
from support import CATALOG, as_arguments

FIELDS = ["color", "city", "user", "tags"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def test_two_processes_tune_as_one(configs, tiny_settings, monkeypatch, capsys):
    settings = as_arguments({**tiny_settings, "ssft_epochs": 4, "lora_dropout": 0.0})
    args = ["encode", "--config", str(configs), "--expid", "FM_LLaCTR_shop", *settings]
    command = [*TORCHRUN, "-m", "fuxictr_llm", *args]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    (together,) = done.stdout.strip().splitlines()
    monkeypatch.setenv("FUXICTR_LLM_CACHE", "other_cache")
    assert main(args) == 0
    alone = capsys.readouterr().out.strip()
    assert Path(alone).parent.name != Path(together).parent.name  # with dropout they would differ
    one, two = read_field_vectors(alone, FIELDS), read_field_vectors(together, FIELDS)
    assert main([*args, "--set", "field_vectors=llm_untuned"]) == 0
    untuned = read_field_vectors(capsys.readouterr().out.strip(), FIELDS)
    assert (one - two).abs().max() < 1e-3 < 0.1 * (one - untuned).abs().max()


def test_a_batch_that_cannot_be_shared_is_named(model, monkeypatch):
    monkeypatch.setattr(lora, "process_state", lambda: SimpleNamespace(num_processes=2))
    config = FieldVectorsConfig(ssft_batch_size=3).filled()
    with pytest.raises(UserError, match="ssft_batch_size 3 cannot be shared among 2 processes; take a multiple"):
        tune(model, CATALOG, *sample_prompts(CATALOG, 4, 0, 0), config, Path("ssft"))
