"""A language model, asked for vectors of texts."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

from fuxictr_llm.errors import UserError, reason_of
from fuxictr_llm.semantics.unfinished import Unfinished

CAUSAL = ("ForCausalLM", "LMHeadModel")
# Tokens a batch: enough to keep all units busy, and on a CPU few enough for its cache.
CPU_TOKENS, GPU_TOKENS = 512, 16_384


@dataclass
class LanguageModel:
    """A language model, and how it makes a vector of a text.

    Attributes:
        model: the network up to its last hidden state.
        lm_head: hidden state -> logits of the next token; None for encoders.
        pooling: `last` (hidden state of the last real token) or `mean` (over the real tokens).
        before, after: the tokens that the tokenizer puts around every text.
    """

    model: nn.Module
    lm_head: nn.Module | None
    tokenizer: Any
    pooling: str
    before: list[int]
    after: list[int]

    @property
    def dtype(self) -> torch.dtype:
        """What the model computes in; tuned weights beside it may be wider."""
        return self.model.get_input_embeddings().weight.dtype

    @property
    def positions(self) -> int | None:
        """How many tokens the model can read; None where it does not say. RoBERTa counts from its padding id on."""
        positions = getattr(self.model.config, "max_position_embeddings", None)
        table = getattr(getattr(self.model, "embeddings", None), "position_embeddings", None)
        offset = getattr(table, "padding_idx", None)
        return positions - offset - 1 if positions and offset is not None else positions

    @property
    def padding(self) -> int:
        """A token id to fill up with; a mask hides it, so a tokenizer without a padding token is no problem."""
        return self.tokenizer.pad_token_id or 0

    def tokens(self, text: str, limit: int | None = None) -> list[int]:
        """Token ids of a text alone, at most `limit`."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"][:limit]

    def framed(self, tokens: list[int]) -> list[int]:
        """The tokens within their frame: what tuning and export both give to the model. A frame of nothing is none."""
        return [*self.before, *tokens, *self.after] if tokens else []

    def batch(self, rows: Sequence[list[int]]) -> dict[str, Tensor]:
        """Token id lists -> `input_ids` and `attention_mask`, padded on the right to `[N, longest]`."""
        longest = max(map(len, rows))
        ids = torch.tensor([[*row, *[self.padding] * (longest - len(row))] for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        return {"input_ids": ids, "attention_mask": mask}

    def hidden(self, batch: dict[str, Tensor], model: nn.Module | None = None) -> Tensor:
        """Last hidden states `[N, L, D_llm]`, on the model's device; `model` stands in for a wrapped one."""
        model = self.model if model is None else model
        device = next(model.parameters()).device
        inputs = {name: batch[name].to(device) for name in ("input_ids", "attention_mask")}
        return model(**inputs).last_hidden_state

    def embed(self, batch: dict[str, Tensor], model: nn.Module | None = None) -> Tensor:
        """Vectors `[N, D_llm]` in float32, on the model's device."""
        hidden = self.hidden(batch, model)
        return pool(hidden.float(), batch["attention_mask"].to(hidden.device), self.pooling)

    @torch.no_grad()
    def encode(self, texts: Iterable[str], limit: int | None = None, kept: Unfinished | None = None) -> Tensor:
        """Vectors of texts, each cut at `limit` tokens, `[N, D_llm]`, in float32 on the CPU.

        Texts of one length share a batch, so that there is little padding. A text of no token at all has zeros. `kept`
        has batches that were encoded before, and gets the others; its `cut` is set.

        Raises:
            UserError: a text is longer than the language model can read.
        """
        self.model.eval()
        texts = list(texts)
        whole = self.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
        if kept and limit:
            kept.cut = sum(len(row) > limit for row in whole)
        rows = [self.framed(row[:limit]) for row in whole]
        self._check_positions(max(map(len, rows), default=0))
        on_gpu = next(self.model.parameters()).is_cuda
        batches = length_batches([len(row) for row in rows], GPU_TOKENS if on_gpu else CPU_TOKENS)
        parts = []
        for chosen in batches:
            tokens = [rows[i] for i in chosen]
            make = partial(self._vectors, tokens)
            parts.append(kept(tokens, make) if kept else make())
        vectors = torch.zeros(len(rows), self.model.config.hidden_size)
        if parts:
            vectors[[i for chosen in batches for i in chosen]] = torch.cat(parts)
        return vectors

    def _vectors(self, tokens: Sequence[list[int]]) -> Tensor:
        return self.embed(self.batch(tokens)).cpu()

    def _check_positions(self, longest: int) -> None:
        positions = self.positions or longest
        if longest > positions:
            raise UserError(
                f"a text of {longest} tokens does not fit into the {positions} positions of the language model; "
                "lower llm_max_value_tokens (of whole texts llm_max_text_tokens), or take another language_model"
            )


def length_batches(lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """Indices of texts in batches of like length: at most `tokens` with padding, or one text; empty texts are left out.

    The longest come first: too little memory shows at once.
    """
    batches: list[list[int]] = []
    for index in sorted((i for i, length in enumerate(lengths) if length), key=lambda i: -lengths[i]):
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def pool(hidden: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """`[N, L, D_llm]` and a right-padded mask `[N, L]` -> `[N, D_llm]`; padding never counts."""
    if pooling == "last":
        return hidden[torch.arange(len(hidden), device=hidden.device), mask.sum(dim=1) - 1]
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1)


def load_language_model(folder: Path, dtype: str, pooling: str, gpu: int) -> LanguageModel:
    """Load a folder's model and tokenizer.

    Args:
        dtype: `bfloat16` or `float32`.
        pooling: `last`, `mean`, or `auto`: last for causal models, mean for encoders.
        gpu: index of the GPU, -1 for the CPU.

    Raises:
        UserError: the folder cannot be loaded.
    """
    try:
        config = AutoConfig.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        causal = any(name.endswith(CAUSAL) for name in config.architectures or [])
        loader = AutoModelForCausalLM if causal else AutoModel
        model = loader.from_pretrained(folder, dtype=getattr(torch, dtype))
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise UserError(f"language model {str(folder)!r} cannot be loaded: {reason_of(error)}") from error
    if config.is_encoder_decoder:
        model = model.get_encoder()
    if pooling == "auto":
        pooling = "last" if causal else "mean"
    model.eval().requires_grad_(False)
    model.config.use_cache = False  # nothing is generated token by token
    model.to(f"cuda:{gpu}" if gpu >= 0 else "cpu")
    lm_head = model.get_output_embeddings() if causal else None
    return LanguageModel(model.base_model if causal else model, lm_head, tokenizer, pooling, *_frame(tokenizer))


def _frame(tokenizer: Any) -> tuple[list[int], list[int]]:
    """What the tokenizer puts before and behind a text: BOS, [CLS] and [SEP], or nothing."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    framed = tokenizer("a", add_special_tokens=True)["input_ids"]
    for start in range(len(framed) - len(plain) + 1):
        if framed[start : start + len(plain)] == plain:
            return framed[:start], framed[start + len(plain) :]
    return [], []
