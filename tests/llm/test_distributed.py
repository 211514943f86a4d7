"""SSFT under torchrun; that two processes end with the vectors of one is in training/test_devices.py."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.llm import lora
from fuxictr_llm.model_zoo.LLaCTR.config import FieldVectorsConfig
from fuxictr_llm.model_zoo.LLaCTR.prompts import sample_prompts
from fuxictr_llm.model_zoo.LLaCTR.ssft import tune
from support import CATALOG


def test_a_batch_that_cannot_be_shared_is_named(model, monkeypatch):
    monkeypatch.setattr(lora, "process_state", lambda: SimpleNamespace(num_processes=2))
    config = FieldVectorsConfig(ssft_batch_size=3).filled()
    with pytest.raises(UserError, match="ssft_batch_size 3 cannot be shared among 2 processes; take a multiple"):
        tune(model, CATALOG, *sample_prompts(CATALOG, 4, 0, 0), config, Path("ssft"))
