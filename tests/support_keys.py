"""What the tests of cache keys share: each setting is changed, and has to change the key."""

from dataclasses import fields

import pytest

LANGUAGE_MODEL = {"language_model": "b", "llm_dtype": "bfloat16", "llm_pooling": "last"}
LORA = {"lora_rank": 4, "lora_alpha": 8, "lora_dropout": 0.5, "lora_targets": ["q_proj"]}


def settings_of(config_cls, changed, of_others):
    """Each setting of a config, where all of them are looked at."""
    assert {field.name for field in fields(config_cls)} == changed.keys() | {*of_others}
    return pytest.mark.parametrize(("name", "value"), changed.items(), ids=list(changed))
