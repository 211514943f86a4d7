"""SSFT against a literal version of the published loop, and the encoding of 40 fields, both with the real SmolLM2."""

import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as functional
from peft import LoraConfig, get_peft_model

from fuxictr_llm.llm.catalog import FieldCatalog, FieldEntry
from fuxictr_llm.llm.language_model import LanguageModel, load_language_model
from fuxictr_llm.llm.lora import with_lora
from fuxictr_llm.llm.model_files import find_language_model
from fuxictr_llm.model_zoo.LLaCTR.config import FieldVectorsConfig
from fuxictr_llm.model_zoo.LLaCTR.prompt_batches import PromptBatches
from fuxictr_llm.model_zoo.LLaCTR.prompts import Prompt, sample_prompts
from fuxictr_llm.model_zoo.LLaCTR.ssft import contrastive_loss

MICRO_BATCH = 4  # as published: a step of 128 prompts is summed up from micro batches of 4
CONFIG = FieldVectorsConfig().filled()
WORDS = [
    "user",
    "movie",
    "age of the user",
    "gender",
    "occupation",
    "zip code",
    "hour",
    "weekday",
    "title",
    "year",
    "genre",
]
NAMES = ["Toy Story", "Heat", "The Usual Suspects", "Seven", "Babe", "Dead Man Walking", "Taxi Driver", "Fargo"]


def smollm2() -> LanguageModel:
    return load_language_model(find_language_model(CONFIG.language_model), CONFIG.dtype_on(-1), "last", gpu=-1)


def catalog() -> FieldCatalog:
    """11 fields as of MovieLens: ids, words and titles."""
    values = [tuple(NAMES if name == "title" else [f"{name[:3]} {i}" for i in range(8)]) for name in WORDS]
    return FieldCatalog(
        "ratings of movies by the users of a website",
        tuple(FieldEntry(name, f"{name} (field)", value) for name, value in zip(WORDS, values, strict=True)),
    )


def our_step() -> Callable[[list[Prompt]], None]:
    """An optimizer step over some prompts, as `tune` takes it."""
    model = smollm2()
    batches = PromptBatches(model, catalog(), CONFIG.llm_max_value_tokens)
    model.model = with_lora(model.model, CONFIG).train()
    optimizer = torch.optim.AdamW(p for p in model.model.parameters() if p.requires_grad)

    def step(prompts: list[Prompt]) -> None:
        batch = batches.collate(prompts)
        encoded = batches.encode(batch)
        contrastive_loss(encoded.prompts, encoded.fields, batch["answers"], CONFIG.ssft_tau).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def published_step() -> Callable[[list[Prompt]], None]:
    """The same step as the published code takes it, on the same prompts.

    Every micro batch runs whole prompts, padded on the left, and all fields again through the model with its head.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = find_language_model(CONFIG.language_model)
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, CONFIG.dtype_on(-1)))
    lora = LoraConfig(r=8, lora_alpha=16, lora_dropout=0.05, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(model, lora).train()
    model.config.use_cache = False
    optimizer = torch.optim.AdamW(p for p in model.parameters() if p.requires_grad)
    ours = PromptBatches(smollm2(), catalog(), CONFIG.llm_max_value_tokens, packed=False)

    def last_states(rows: list[list[int]]) -> torch.Tensor:
        batch = tokenizer.pad({"input_ids": rows}, return_tensors="pt")
        states = model(**batch, output_hidden_states=True).hidden_states[-1][:, -1]
        return functional.normalize(states.float(), dim=-1)

    def step(prompts: list[Prompt]) -> None:
        for start in range(0, len(prompts), MICRO_BATCH):
            chunk = prompts[start : start + MICRO_BATCH]
            queries = last_states([ours.prefix + ours.value_tokens(prompt) for prompt in chunk])
            fields = last_states(ours.field_rows)
            answers = torch.tensor([prompt.field for prompt in chunk])
            loss = functional.cross_entropy(queries @ fields.T / CONFIG.ssft_tau, answers)
            (loss * len(chunk) / len(prompts)).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def compare_steps(in_turn: Callable[[Callable, Callable, int], float], rounds: int, num_prompts: int) -> float:
    """How many times as many prompts a second ours tunes on."""
    prompts = sample_prompts(catalog(), 8, 0, 0)[0][:num_prompts]
    ours, published = our_step(), published_step()
    return in_turn(lambda: published(prompts), lambda: ours(prompts), rounds)


def seconds_to_encode(num_fields: int = 40) -> float:
    """Median seconds for the vectors of some field descriptions, the model being loaded."""
    model = smollm2()
    texts = [f"anonymous categorical feature {index} of an advertising log" for index in range(num_fields)]
    taken = []
    for _ in range(5):
        start = time.perf_counter()
        model.encode(texts)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)
