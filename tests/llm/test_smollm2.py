"""The real SmolLM2-135M: downloaded, converted, asked and tuned a little, on the real MovieLens-100K."""

from pathlib import Path

import pytest
import torch

from fuxictr_llm.config.resolve import load_experiment
from fuxictr_llm.experiment.run import run_experiment
from fuxictr_llm.llm.language_model import load_language_model
from fuxictr_llm.llm.model_files import digest_of_model, find_language_model
from fuxictr_llm.model_zoo.LLaCTR.prompt_batches import PromptBatches
from fuxictr_llm.model_zoo.LLaCTR.prompts import sample_prompts
from fuxictr_llm.model_zoo.LLaCTR.vector_file import read_field_vectors
from support import CATALOG

pytestmark = pytest.mark.llm
NAME = "SmolLM2-135M-Instruct"


def test_the_named_model_knows_what_words_have_to_do_with_each_other():
    folder = find_language_model(NAME)
    assert {path.name for path in folder.iterdir()} >= {"config.json", "model.safetensors", "tokenizer.json"}
    assert digest_of_model(folder) == digest_of_model(find_language_model(NAME))
    model = load_language_model(folder, "float32", "mean", gpu=-1)
    assert model.model.config.hidden_size == 576 and not model.model.training
    vectors = model.encode(["title of the movie", "name of the film", "zip code of the user"])
    near, far = torch.nn.functional.cosine_similarity(vectors[0], vectors[1:], dim=-1)
    assert near > far


def test_bfloat16_is_close_to_float32():
    texts = ["title of the movie", "age of the user"]
    half, full = (
        load_language_model(find_language_model(NAME), dtype, "last", gpu=-1).encode(texts)
        for dtype in ("bfloat16", "float32")
    )
    assert half.dtype == torch.float32
    assert (torch.nn.functional.cosine_similarity(half, full, dim=-1) > 0.98).all()


def test_its_prompts_are_packed_and_give_the_vectors_of_whole_ones():
    model = load_language_model(find_language_model(NAME), "float32", "auto", gpu=-1)
    prompts, _ = sample_prompts(CATALOG, 4, 0, 0)
    batches, whole = PromptBatches(model, CATALOG, 32), PromptBatches(model, CATALOG, 32, packed=False)
    assert batches.packed
    with torch.no_grad():
        packed, padded = batches.encode(batches.collate(prompts)), whole.encode(whole.collate(prompts))
    for one, other in ((packed.prompts, padded.prompts), (packed.fields, padded.fields)):
        assert ((one - other).norm(dim=-1) / other.norm(dim=-1)).max() < 1e-4


def test_llactr_on_movielens_from_raw_data_to_test_metrics():
    changes = {"ssft_values_per_field": 2, "ssft_epochs": 1, "ssft_held_out": 0.0, "epochs": 2, "verbose": 0}
    experiment = load_experiment("DeepFM_LLaCTR_movielens100k", overrides=changes)
    result = run_experiment(experiment)
    record, notes = result.record, result.record["notes"]["field_vectors"]
    assert record["data"]["rows"] == {"train": 80000, "valid": 10000, "test": 10000}
    assert notes["ssft"]["prompts"] == 22 and notes["ssft"]["tuned_parameters"] == 460_800
    vectors = read_field_vectors(notes["path"], result.run.feature_map.features)
    assert vectors.shape == (11, 576) and notes["pooling"] == "last"
    assert record["metrics"]["test"]["AUC"] > 0.7
    assert f"[exp_id] {experiment.full_id}," in Path("benchmark_configs.csv").read_text()


def test_vectors_of_genres_leave_the_padding_zero():
    changes = {"value_fields": ["genres"], "value_usage": "sum", "epochs": 1, "verbose": 0}
    result = run_experiment(load_experiment("DeepFM_LLMEmb_movielens100k", overrides=changes))
    assert result.record["notes"]["value_vectors"]["columns"]["genres"]["values"] == 19
    layer = result.model.embedding_layer.embedding_layer.embedding_layers["genres"]
    assert type(layer).__name__ == "PretrainedEmbedding" and layer.pretrain_embedding.weight[1:20].abs().min() > 0
    assert not layer.pretrain_embedding.weight[0].any() and not layer.id_embedding.weight[0].any()
    assert result.record["metrics"]["test"]["AUC"] > 0.7


@pytest.mark.parametrize("name", [NAME, "all-MiniLM-L6-v2"])
def test_texts_encoded_together_have_the_vectors_that_they_have_alone(name):
    texts = ["title of the movie is Fargo. release year of the movie is 1996. genre of the movie is Crime, Drama."]
    texts += ["gender of the user is female.", "age of the user is 25-29. occupation of the user is writer.", ""]
    model = load_language_model(find_language_model(name), "float32", "mean", gpu=-1)
    together = model.encode(texts)
    alone = torch.cat([model.encode([text]) for text in texts])
    assert torch.allclose(together, alone, rtol=1e-3, atol=1e-3 * alone.abs().max().item())
    assert not together[-1].any() and together[:3].norm(dim=1).min() > 0
