"""A causal language model that writes: prompts -> answers, by the likeliest tokens or drawn with a seed.

Shape symbols: `N` prompts of a batch, `V` tokens of the vocabulary.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fuxictr_llm.common.errors import UserError, reason_of
from fuxictr_llm.common.files import digest_of

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel

    from fuxictr_llm.llm.language_model import LanguageModel


@dataclass(frozen=True)
class Answer:
    """What was written for a prompt.

    Attributes:
        text: without blanks around it; empty where nothing was written.
        read, written: how many tokens, the one that ends an answer included.
        seconds: its share of the time of its batch.
        ended: whether the language model ended it; else it was cut.
    """

    text: str
    read: int
    written: int
    seconds: float
    ended: bool


@dataclass(frozen=True)
class Writing:
    """How answers are written.

    Attributes:
        language_model: a named model, a Hugging Face id or a folder.
        dtype: what it computes in: `bfloat16` or `float32`.
        max_new_tokens: an answer that is longer is cut.
        temperature: of drawing; 0: the likeliest token each time.
        seed: of drawing; every prompt draws for itself.
    """

    language_model: str
    dtype: str
    max_new_tokens: int
    temperature: float = 0.0
    seed: int = 0


class Writer:
    """A loaded language model that answers prompts.

    Args:
        folder: the language model's.
        writing: how it answers.
        gpu: index of the GPU, -1 for the CPU.

    Raises:
        UserError: it cannot be loaded, or does not write.
    """

    def __init__(self, folder: Path, writing: Writing, gpu: int):
        # Heavy libraries are imported only where something has to be asked of a language model.
        from fuxictr_llm.llm.language_model import load_language_model

        self.writing = writing
        self.language_model = load_language_model(folder, writing.dtype, "auto", gpu)
        self.model = _with_head(self.language_model, writing.language_model)
        self.config = _generation_config(folder, self.language_model, writing.max_new_tokens)

    def tokens(self, prompt: str) -> list[int]:
        """Token ids of a prompt, as the language model's chat template puts it, or else framed as any text.

        Raises:
            UserError: it leaves no room for an answer, or its template cannot be used.
        """
        model = self.language_model
        if model.tokenizer.chat_template:
            try:
                chat = [{"role": "user", "content": prompt}]
                prompt = model.tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
            except Exception as error:  # a template may raise anything
                raise UserError(
                    f"the chat template of language model {self.writing.language_model!r} cannot be used: "
                    f"{reason_of(error)}; remove it from its folder, or take another language model"
                ) from error
            tokens = model.tokens(prompt)
        else:
            tokens = [*model.before, *model.tokens(prompt)]
        longest, positions = len(tokens) + self.writing.max_new_tokens, model.positions
        if positions and longest > positions:
            raise UserError(
                f"a prompt of {len(tokens)} tokens and an answer of {self.writing.max_new_tokens} do not fit into the "
                f"{positions} positions of language model {self.writing.language_model!r}; tell less in the prompt, "
                "have less written, or take another language model"
            )
        return tokens

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str], rows: Sequence[list[int]]) -> dict[str, Answer]:
        """Of prompts and their tokens, prompt -> answer."""
        started, longest = time.perf_counter(), max(map(len, rows))
        padding, device = self.language_model.padding, next(self.model.parameters()).device
        ids = torch.tensor([[padding] * (longest - len(row)) + row for row in rows], device=device)
        lengths = torch.tensor([len(row) for row in rows], device=device).unsqueeze(1)
        mask = (torch.arange(longest, device=device) >= longest - lengths).long()
        drawn = []
        if self.writing.temperature:
            seeds = [int(digest_of([self.writing.seed, prompt])[:15], 16) for prompt in prompts]
            drawn = [Draws(self.writing.temperature, seeds)]
        try:
            out = self.model.generate(
                input_ids=ids, attention_mask=mask, generation_config=self.config, logits_processor=drawn
            )
        except (IndexError, RuntimeError) as error:  # too little memory, say
            raise UserError(
                f"language model {self.writing.language_model!r} cannot answer {len(rows)} prompts of up to {longest} "
                f"tokens ({reason_of(error)}); tell less in the prompt, have less written, or take another one"
            ) from error
        seconds = round((time.perf_counter() - started) / len(rows), 4)
        written = out[:, longest:].tolist()
        return {
            prompt: self._answer(row, new, seconds) for prompt, row, new in zip(prompts, rows, written, strict=True)
        }

    def _answer(self, row: list[int], written: list[int], seconds: float) -> Answer:
        end = next((place for place, token in enumerate(written) if token in self.config.eos_token_id), None)
        text = self.language_model.tokenizer.decode(written[:end], skip_special_tokens=True)
        count = len(written) if end is None else end + 1
        return Answer(text.strip(), len(row), count, seconds, end is not None)


class Draws:
    """Scores `[N, V]` -> scores whose largest is a draw from `softmax(scores / temperature)`: with Gumbel noise added.

    Every text has a generator of its own, so that it does not depend on those beside it.

    Args:
        temperature: positive.
        seeds: one a text.
    """

    def __init__(self, temperature: float, seeds: Sequence[int]):
        self.temperature = temperature
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        width = scores.shape[1]
        noise = [-torch.empty(width).exponential_(generator=generator).log() for generator in self.generators]
        return scores / self.temperature + torch.stack(noise).to(scores.device)


def _with_head(language_model: "LanguageModel", name: str) -> "PreTrainedModel":
    """The whole network, which writes; its parts are those that are loaded already."""
    from transformers import AutoModelForCausalLM

    if language_model.lm_head is None:
        raise UserError(
            f"language model {name!r} does not write: it is an encoder, or has no weights of a head; take a causal one"
        )
    with torch.device("meta"):
        whole = AutoModelForCausalLM.from_config(language_model.model.config, trust_remote_code=False)
    setattr(whole, whole.base_model_prefix, language_model.model)
    whole.set_output_embeddings(language_model.lm_head)
    if empty := [key for key, weight in whole.named_parameters() if weight.is_meta]:
        raise UserError(f"language model {name!r} cannot write: {empty[0]!r} is no part of its head; take another")
    return whole.eval()


def _generation_config(folder: Path, language_model: "LanguageModel", max_new_tokens: int) -> "GenerationConfig":
    """The likeliest token each time; which tokens end an answer stands in the folder, nothing else counts there."""
    from transformers import GenerationConfig

    said = GenerationConfig.from_pretrained(folder) if (folder / "generation_config.json").is_file() else None
    candidates = [said and said.eos_token_id, language_model.tokenizer.eos_token_id]
    ends = [end for each in candidates for end in (each if isinstance(each, list) else [each]) if end is not None]
    return GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=list(dict.fromkeys(ends)),
        pad_token_id=language_model.padding,
        use_cache=True,
    )
