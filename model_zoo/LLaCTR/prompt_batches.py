"""Prompts and field texts as token batches, and their vectors: the same tokens for tuning, measuring and export.

A causal language model gets them packed, so that the beginning that all prompts share is computed once a step;
other models, and those that do not understand packing, get every prompt whole, padded to the longest.

A packed token sees the tokens before it in its own text, and the shared beginning if its text has it; positions
count as if each text stood alone. So the hidden states are those of the single texts, without their padding.

Shape symbols: `N` prompts, `K` fields, `D_llm` width of the language model, `R` packed rows, `T` tokens of a row.
"""

import inspect
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.llm.catalog import FieldCatalog
from fuxictr_llm.llm.language_model import LanguageModel, pool
from fuxictr_llm.llm.model_files import widened

from .prompts import ANSWER, Prompt, common_prefix

# What torch's cross entropy leaves out.
IGNORED = -100
# How far a packed vector may be off that of the whole prompt, as a share of its length: rounding stays below.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.05}
MOST_SAMPLES = 256
# Attention grows with the square of a row, so that a long row costs more than one more shared beginning.
ROW_TOKENS = 1024
# Texts of a row are numbered from 1; the shared beginning is 0, padding sees itself alone.
SHARED, PADDING = 0, -1


@dataclass(frozen=True)
class Encoded:
    """What the language model makes of a batch.

    Attributes:
        prompts: `[N, D_llm]`, in float32.
        fields: `[K, D_llm]`, in float32.
        hidden: the states of all tokens, for the generative loss.
    """

    prompts: Tensor
    fields: Tensor
    hidden: Tensor


class PromptBatches:
    """Makes batches of prompts and encodes them. A long value is cut; candidates and answer never are.

    Args:
        language_model: a causal one may be given packed batches.
        catalog: the K fields.
        max_value_tokens: what a value is cut to.
        packed: None: packed where that gives the same vectors.

    Raises:
        UserError: a prompt could be longer than the language model can read.
    """

    def __init__(
        self, language_model: LanguageModel, catalog: FieldCatalog, max_value_tokens: int, packed: bool | None = None
    ):
        self.language_model, self.max_value_tokens = language_model, max_value_tokens
        self.prefix = language_model.tokens(common_prefix(catalog))
        self.intro = language_model.tokens(ANSWER)
        self.answers = [language_model.tokens(f" {field.text}") for field in catalog.fields]
        # Row by row the shared beginning is computed again: it may fill half of a row at most.
        self.row_tokens = max(ROW_TOKENS, 2 * len(self.prefix))
        self.field_rows = [language_model.framed(language_model.tokens(field.text)) for field in catalog.fields]
        self._check_length()
        self.packed = self._can_be_packed(catalog) if packed is None else packed

    def value_tokens(self, prompt: Prompt) -> list[int]:
        """The tokens of a prompt's value, cut to the limit; none for a value that the tokenizer drops."""
        return self.language_model.tokens(f" {prompt.value}", self.max_value_tokens)

    def collate(self, prompts: Sequence[Prompt], with_answers: bool = False) -> dict[str, Tensor]:
        """A batch for `encode`; `answers` `[N]` holds the field of each prompt.

        Args:
            with_answers: each prompt is followed by its field's words; `answer_tokens` has them in their places
                and `IGNORED` elsewhere. For causal models only.
        """
        values, frame = [self.value_tokens(prompt) for prompt in prompts], self.language_model.after
        texts = [value + frame for value in values]
        lengths = [len(text) for text in texts]
        if with_answers:
            answered = [v + self.intro + self.answers[p.field] for v, p in zip(values, prompts, strict=True)]
            # Without a frame behind it, a prompt is the beginning of the answered one.
            texts = [*texts, *answered] if frame else answered
            lengths = [*(lengths if frame else ()), *map(len, values)]
        batch = self._pack(texts, lengths) if self.packed else self._pad(texts, lengths)
        if with_answers:
            self._mark_answers(batch, prompts, first=len(texts) - len(prompts))
        return {**batch, "answers": torch.tensor([prompt.field for prompt in prompts])}

    def encode(self, batch: dict[str, Tensor], model: nn.Module | None = None) -> Encoded:
        """Vectors of the batch's prompts and of all fields; `model` stands in for a wrapped one."""
        language_model, ends, num_prompts = self.language_model, batch["ends"], len(batch["answers"])
        if not self.packed:
            hidden = language_model.hidden(batch, model)
            within = torch.arange(hidden.shape[1], device=hidden.device) < ends.to(hidden.device).unsqueeze(1)
            prompts = pool(hidden.float(), within.long(), language_model.pooling)[:num_prompts]
            return Encoded(prompts, language_model.embed(language_model.batch(self.field_rows), model), hidden)
        model = language_model.model if model is None else model
        weight = next(model.parameters())
        language_model.tokens_read += int((batch["segments"] != PADDING).sum())
        batch = {name: tensor.to(weight.device) for name, tensor in batch.items()}
        mask = attention_mask(batch["segments"], batch["sees_shared"], language_model.dtype)
        hidden = model(
            input_ids=batch["input_ids"], attention_mask=mask, position_ids=batch["position_ids"]
        ).last_hidden_state
        behind = len(ends) - len(self.field_rows)
        vectors = pool_packed(hidden.float(), batch, batch["ends"], behind, language_model.pooling)
        return Encoded(vectors[:num_prompts], vectors[behind:], hidden)

    def _pack(self, texts: list[list[int]], lengths: list[int]) -> dict[str, Tensor]:
        model = self.language_model
        batch = pack([*model.before, *self.prefix], texts, self.field_rows, model.padding, self.row_tokens)
        counted = torch.tensor([*lengths, *map(len, self.field_rows)])
        return {**batch, "ends": batch["places"][:, 0] + counted}

    def _pad(self, texts: list[list[int]], lengths: list[int]) -> dict[str, Tensor]:
        shared = [*self.language_model.before, *self.prefix]
        batch = self.language_model.batch([shared + text for text in texts])
        return {**batch, "ends": len(shared) + torch.tensor(lengths)}

    def _mark_answers(self, batch: dict[str, Tensor], prompts: Sequence[Prompt], first: int) -> None:
        marked = torch.full_like(batch["input_ids"], IGNORED)
        flat, longest = marked.view(-1), marked.shape[1]
        for index, prompt in enumerate(prompts, start=first):
            end = int(batch["ends"][index]) + (0 if self.packed else index * longest)
            answer, start = self.answers[prompt.field], end + len(self.intro)
            flat[start : start + len(answer)] = torch.tensor(answer)
        batch["answer_tokens"] = marked

    def _check_length(self) -> None:
        model = self.language_model
        longest = len(model.framed(self.prefix)) + self.max_value_tokens
        if model.lm_head is not None:
            longest += len(self.intro) + max(map(len, self.answers))
        limit = model.positions or longest
        if longest > limit:
            raise UserError(
                f"prompts of up to {longest} tokens do not fit into the {limit} positions of the language model; "
                "shorten the field descriptions, lower llm_max_value_tokens, or take another language model"
            )

    @torch.no_grad()
    def _can_be_packed(self, catalog: FieldCatalog) -> bool:
        """Whether packed prompts get the vectors of whole ones, tried on half a row."""
        model = self.language_model
        if not model.nature.causal or "position_ids" not in inspect.signature(model.model.forward).parameters:
            return False
        model.model.eval()
        samples = [Prompt(field.text, index) for index, field in enumerate(catalog.fields)]
        fill = self.row_tokens // 2 // max(1, sum(len(self.value_tokens(prompt)) for prompt in samples)) + 1
        samples = (samples * fill)[:MOST_SAMPLES]
        far = slice(-2, None)  # errors grow with the distance from the shared beginning
        with widened(model.model):
            dtype, vectors = model.dtype, []
            for self.packed in (False, True):
                try:
                    encoded = self.encode(self.collate(samples if self.packed else samples[far]))
                except (ValueError, TypeError, RuntimeError, IndexError) as error:  # an architecture of another kind
                    logging.info("Prompts are not packed: %s", error)
                    return False
                vectors.append(torch.cat([encoded.prompts[far], encoded.fields]))
        difference = ((vectors[0] - vectors[1]).norm(dim=-1) / vectors[0].norm(dim=-1)).max().item()
        same = difference <= TOLERANCE.get(dtype, 0.05)
        if not same:
            logging.info("Prompts are not packed: the language model would give other vectors (by %.3f)", difference)
        return same


def pack(
    shared: list[int], texts: Sequence[list[int]], apart: Sequence[list[int]], pad: int, row_tokens: int = ROW_TOKENS
) -> dict[str, Tensor]:
    """Token ids of N texts behind a shared beginning and K texts without it, packed into rows for a causal model.

    Returns:
        `input_ids`, `position_ids`, `segments` `[R, T]`, `sees_shared` `[R, T]`, and `places` `[N + K, 2]`: the first
        token of each text and the one behind its last, counted through the flattened rows.
    """
    rows = _rows([*texts, *apart], len(shared), row_tokens)
    longest = len(shared) + max(sum(length for _, length in row) for row in rows)
    ids = torch.full((len(rows), longest), pad)
    positions = torch.zeros_like(ids)
    segments = torch.full_like(ids, PADDING)
    sees_shared = torch.zeros_like(ids, dtype=torch.bool)
    places = torch.zeros(len(texts) + len(apart), 2, dtype=torch.long)
    for r, row in enumerate(rows):
        end = len(shared)
        ids[r, :end], positions[r, :end], segments[r, :end] = torch.tensor(shared), torch.arange(end), SHARED
        for number, (index, length) in enumerate(row, start=1):
            behind = index < len(texts)
            tokens = texts[index] if behind else apart[index - len(texts)]
            start, end = end, end + length
            first = len(shared) if behind else 0
            ids[r, start:end], positions[r, start:end] = torch.tensor(tokens), torch.arange(first, first + length)
            segments[r, start:end], sees_shared[r, start:end] = number, behind
            places[index] = torch.tensor([r * longest + start, r * longest + end])
    return {
        "input_ids": ids,
        "position_ids": positions,
        "segments": segments,
        "sees_shared": sees_shared,
        "places": places,
    }


def _rows(texts: Sequence[list[int]], shared: int, row_tokens: int) -> list[list[tuple[int, int]]]:
    """Index and length of the texts of each row, in order; rows are filled up one after the other."""
    rows: list[list[tuple[int, int]]] = []
    filled = row_tokens
    for index, tokens in enumerate(texts):
        if filled + len(tokens) > row_tokens:
            rows.append([])
            filled = shared
        rows[-1].append((index, len(tokens)))
        filled += len(tokens)
    return rows


def attention_mask(segments: Tensor, sees_shared: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to the attention scores, `[R, 1, T, T]`: 0 where a token may look, the lowest number elsewhere."""
    order = torch.arange(segments.shape[1], device=segments.device)
    own = segments.unsqueeze(2) == segments.unsqueeze(1)
    shared = sees_shared.unsqueeze(2) & (segments == SHARED).unsqueeze(1)
    visible = (own | shared) & (order <= order.unsqueeze(1))
    mask = torch.zeros(visible.shape, dtype=dtype, device=segments.device)
    return mask.masked_fill_(~visible, torch.finfo(dtype).min).unsqueeze(1)


def pool_packed(hidden: Tensor, packed: dict[str, Tensor], ends: Tensor, num_behind: int, pooling: str) -> Tensor:
    """Hidden states `[R, T, D_llm]` -> a vector for each text `[N + K, D_llm]`.

    Args:
        ends: `[N + K]`, the place behind the last token that counts of each text.
        num_behind: N; for these the shared beginning counts in a mean.
        pooling: `last` or `mean`.
    """
    flat = hidden.flatten(0, 1)
    if pooling == "last":
        return flat[ends - 1]
    starts = packed["places"][:, 0].to(ends.device)
    order = torch.arange(len(flat), device=flat.device)
    counted = ((order >= starts.unsqueeze(1)) & (order < ends.unsqueeze(1))).to(flat.dtype)
    sums, counts = counted @ flat, counted.sum(dim=1, keepdim=True)
    shared = packed["segments"].to(hidden.device)[0] == SHARED
    behind = (torch.arange(len(ends), device=flat.device) < num_behind).to(flat.dtype).unsqueeze(1)
    sums = sums + behind * hidden[0][shared].sum(dim=0)
    return sums / (counts + behind * shared.sum())
