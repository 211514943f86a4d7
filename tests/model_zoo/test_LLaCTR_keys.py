"""The key of field vectors, and of the checkpoints of SSFT, has all that changes them.

A setting that is not named here fails: say what it changes, or why it changes nothing.
"""

from dataclasses import replace

import torch

from fuxictr_llm.common import cache as store
from fuxictr_llm.common.files import digest_of
from fuxictr_llm.model_zoo.LLaCTR import field_vectors
from fuxictr_llm.model_zoo.LLaCTR.config import FieldVectorsConfig
from fuxictr_llm.model_zoo.LLaCTR.prompts import Prompt, common_prefix, sample_prompts
from support import CATALOG
from support_keys import LANGUAGE_MODEL, LORA, settings_of

FIELD_VECTORS = {
    **LANGUAGE_MODEL,
    **LORA,
    "llm_max_value_tokens": 8,
    "llm_centre": True,
    "ssft_values_per_field": 7,
    "ssft_epochs": 9,
    "ssft_batch_size": 2,
    "ssft_learning_rate": 0.1,
    "ssft_warmup_steps": 1,
    "ssft_tau": 0.5,
    "ssft_contrastive": 0.5,
    "ssft_generative": 0.5,
    "ssft_held_out": 0.5,
    "ssft_patience": 1,
    "ssft_seed": 1,
}


def field_key(config, digest="x", catalog=CATALOG, prompts=None, gpu=-1):
    config = config.filled()
    drawn = sample_prompts(catalog, config.ssft_values_per_field, config.ssft_held_out, config.ssft_seed)
    return digest_of(field_vectors._made_from(config, digest, catalog, prompts or drawn, gpu))


# `ssft_preset` fills others in; the seed of placebos and their source are looked at below.
@settings_of(FieldVectorsConfig, FIELD_VECTORS, {"ssft_preset", "control_seed", "field_vectors"})
def test_field_vectors(name, value):
    config = FieldVectorsConfig(language_model="a", llm_dtype="float32")
    assert field_key(replace(config, **{name: value})) != field_key(config) == field_key(replace(config))


def test_field_vectors_of_other_words_values_or_models():
    config = FieldVectorsConfig(language_model="a", llm_dtype="float32")
    color, city = CATALOG.fields
    others = [
        {"digest": "y"},
        {"gpu": 0},
        {"prompts": ([Prompt("red", 0)], [])},
        {"catalog": replace(CATALOG, about="other clicks")},
        {"catalog": replace(CATALOG, fields=(replace(color, text="hue"), city))},
        {"catalog": replace(CATALOG, fields=(city, color))},
    ]
    keys = {field_key(config, **other) for other in [{}, *others]}
    assert len(keys) == 1 + len(others) and common_prefix(CATALOG)
    assert field_key(replace(config, ssft_epochs=0)) not in keys


def test_field_vectors_that_were_tuned_by_other_threads():
    config = FieldVectorsConfig(language_model="a", llm_dtype="float32")
    untuned, keys = replace(config, ssft_epochs=0), set()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        keys |= {field_key(config), field_key(untuned), field_key(config, gpu=0)}
    assert len(keys) == 4  # what is only encoded, or made on a GPU, does not depend on them


def test_placebos_of_field_vectors(monkeypatch):
    keys = []
    monkeypatch.setattr(store, "find_or_make", lambda kind, made_from, *_: keys.append(digest_of(made_from)))
    for source, of in [
        *(("random", {"of_sha256": sha, "seed": seed}) for sha in "ab" for seed in (0, 1)),
        ("shuffled", {"of_sha256": "a", "seed": 0}),
        *(("identity", {"fields": names}) for names in (["a", "b"], ["b", "a"])),
    ]:
        field_vectors._stored_control(source, of, CATALOG, lambda: None)
    assert len({*keys}) == len(keys) == 7
