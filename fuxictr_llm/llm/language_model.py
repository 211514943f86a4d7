"""A language model that turns texts into vectors: its tokens, batches and pooling.

Shape symbols: `N` texts, `L` tokens, `D_llm` width of the language model.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from fuxictr_llm.common.errors import UserError, reason_of
from fuxictr_llm.llm.model_files import PROBED_TOKENS, Nature, check_unchanged, load_folder, probe
from fuxictr_llm.llm.progress import UnfinishedShard
from fuxictr_llm.llm.threads import each_in_one_thread

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# What configs call the number of tokens that a model has positions for.
POSITIONS = ("max_position_embeddings", "max_encoder_position_embeddings", "max_seq_len")
# Tokens a batch: enough to keep all units busy, and on a CPU few enough for its cache.
CPU_TOKENS, GPU_TOKENS = 512, 16_384
COUNTING = Lock()  # several threads read batches


@dataclass
class LanguageModel:
    """A language model, and how it makes a vector of a text.

    Attributes:
        model: the network up to its last hidden state.
        lm_head: hidden state -> logits of the next token; None for encoders, and where the folder has none.
        pooling: `last` (hidden state of the last real token) or `mean` (over the real tokens).
        before, after: the tokens that the tokenizer puts around every text.
        nature: what it does with texts.
        token_embeddings: how many tokens it has embeddings for; None where it does not say.
        tokens_read: how many it was given so far in this process, without padding.
    """

    model: "PreTrainedModel"
    lm_head: nn.Module | None
    tokenizer: Any
    pooling: str
    before: list[int]
    after: list[int]
    nature: Nature
    token_embeddings: int | None
    tokens_read: int = 0

    @property
    def dtype(self) -> torch.dtype:
        """What the model computes in; tuned weights beside it may be wider."""
        own = [parameter for parameter in self.model.parameters() if parameter.is_floating_point()]
        return min(own, key=lambda parameter: parameter.requires_grad).dtype

    @property
    def positions(self) -> int | None:
        """How many tokens the model can read; None without a limit. RoBERTa counts from its padding id on."""
        said = (getattr(self.model.config, key, None) or 0 for key in POSITIONS)
        positions = next((count for count in said if count > 0), None)  # XLNet says -1: its positions are relative
        table = getattr(getattr(self.model, "embeddings", None), "position_embeddings", None)
        offset = getattr(table, "padding_idx", None)
        return positions - offset - 1 if positions and offset is not None else positions

    @property
    def padding(self) -> int:
        """A token id to fill up with; a mask hides it, so a tokenizer without a padding token is no problem."""
        return _padding(self.tokenizer, self.token_embeddings)

    def tokens(self, text: str, limit: int | None = None) -> list[int]:
        """Token ids of a text alone, at most `limit`.

        Raises:
            UserError: the model has no embedding for one.
        """
        tokens = self.tokenizer(text, add_special_tokens=False)["input_ids"][:limit]
        self._check_tokens(max(tokens, default=0))
        return tokens

    def framed(self, tokens: list[int]) -> list[int]:
        """The tokens within their frame: what tuning and export both give to the model. A frame of nothing is none."""
        return [*self.before, *tokens, *self.after] if tokens else []

    def batch(self, rows: Sequence[list[int]]) -> dict[str, Tensor]:
        """Token id lists -> `input_ids` and `attention_mask`, padded on the right to `[N, longest]`.

        Raises:
            UserError: the model has no embedding for a token.
        """
        longest = max(map(len, rows))
        ids = torch.tensor([[*row, *[self.padding] * (longest - len(row))] for row in rows])
        self._check_tokens(int(ids.max()))
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        return {"input_ids": ids, "attention_mask": mask}

    def hidden(self, batch: dict[str, Tensor], model: nn.Module | None = None) -> Tensor:
        """Last hidden states `[N, L, D_llm]`, on the model's device; `model` stands in for a wrapped one."""
        model = self.model if model is None else model
        device = next(model.parameters()).device
        count = int(batch["attention_mask"].sum())
        with COUNTING:
            self.tokens_read += count
        inputs = {name: batch[name].to(device) for name in ("input_ids", "attention_mask")}
        try:
            if self.nature.ignores_padding:
                return model(**inputs).last_hidden_state
            return self._hidden_by_length(inputs, model)
        except (IndexError, RuntimeError) as error:  # a limit that its config does not have, or too little memory
            texts, longest = inputs["input_ids"].shape
            raise UserError(
                f"the language model cannot read {texts} texts of up to {longest} tokens ({reason_of(error)}); lower "
                "llm_max_value_tokens (of whole texts llm_max_text_tokens), or take another language_model"
            ) from error

    def _hidden_by_length(self, inputs: dict[str, Tensor], model: nn.Module) -> Tensor:
        """As `hidden`, texts of one length at a time, which need no padding."""
        lengths = inputs["attention_mask"].sum(dim=1)
        hidden = torch.zeros(*inputs["input_ids"].shape, self.nature.width, device=lengths.device, dtype=self.dtype)
        for length in lengths.unique().tolist():
            rows = lengths == length
            part = model(**{name: tensor[rows, :length] for name, tensor in inputs.items()}).last_hidden_state
            hidden[rows, :length] = part.to(hidden.dtype)
        return hidden

    def embed(self, batch: dict[str, Tensor], model: nn.Module | None = None) -> Tensor:
        """Vectors `[N, D_llm]` in float32, on the model's device."""
        hidden = self.hidden(batch, model)
        return pool(hidden.float(), batch["attention_mask"].to(hidden.device), self.pooling)

    @torch.no_grad()
    def encode(self, texts: Iterable[str], limit: int | None = None, kept: UnfinishedShard | None = None) -> Tensor:
        """Vectors of texts, each cut at `limit` tokens, `[N, D_llm]`, in float32 on the CPU.

        Texts of one length share a batch, so that there is little padding. A text of no token at all has zeros. `kept`
        has batches that were encoded before, and gets the others; its `cut` and `tokens` are set.

        Raises:
            UserError: a text is longer than the language model can read.
        """
        self.model.eval()
        texts = list(texts)
        whole = self.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
        if kept and limit:
            kept.cut = sum(len(row) > limit for row in whole)
        rows = [self.framed(row[:limit]) for row in whole]
        if kept:
            kept.tokens = sum(map(len, rows))
        self._check_positions(max(map(len, rows), default=0))
        on_gpu = next(self.model.parameters()).is_cuda
        batches = length_batches([len(row) for row in rows], GPU_TOKENS if on_gpu else CPU_TOKENS)
        tokens = [[rows[i] for i in chosen] for chosen in batches]
        vectors = torch.zeros(len(rows), self.nature.width)
        for chosen, part in zip(batches, kept(tokens, self._each) if kept else self._each(tokens), strict=True):
            vectors[chosen] = part
        return vectors

    def _check_tokens(self, largest: int) -> None:
        if self.token_embeddings is not None and largest >= self.token_embeddings:
            token = self.tokenizer.convert_ids_to_tokens(largest)
            raise UserError(
                f"the tokenizer of the language model gives the token {token!r} the id {largest}, but the model has "
                f"embeddings for {self.token_embeddings} tokens alone; take the tokenizer that belongs to it, or "
                "resize its embeddings"
            )

    def _each(self, batches: Sequence[Sequence[list[int]]]) -> Iterator[Tensor]:
        on_gpu = next(self.model.parameters()).is_cuda
        return map(self._vectors, batches) if on_gpu else each_in_one_thread(self._vectors, batches)

    @torch.no_grad()  # which holds for one thread alone
    def _vectors(self, tokens: Sequence[list[int]]) -> Tensor:
        return self.embed(self.batch(tokens)).cpu()

    def _check_positions(self, longest: int) -> None:
        positions = self.positions or longest
        if longest > positions:
            raise UserError(
                f"a text of {longest} tokens does not fit into the {positions} positions of the language model; "
                "lower llm_max_value_tokens (of whole texts llm_max_text_tokens), or take another language_model"
            )


class TokensRead(TrainerCallback):
    """Keeps with each checkpoint how many tokens the tuning has read, and counts on from there.

    Args:
        language_model: counts them as `tokens_read`.
    """

    def __init__(self, language_model: LanguageModel):
        self.language_model, self._before = language_model, language_model.tokens_read

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._before = self.language_model.tokens_read
        self.language_model.tokens_read += state.num_input_tokens_seen

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        state.num_input_tokens_seen = self.language_model.tokens_read - self._before


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


def load_language_model(folder: Path, dtype: str, pooling: str, gpu: int, sha256: str | None = None) -> LanguageModel:
    """Load a folder's model and tokenizer.

    Args:
        dtype: `bfloat16` or `float32`.
        pooling: `last`, `mean`, or `auto`: last for causal models, mean for encoders.
        gpu: index of the GPU, -1 for the CPU.
        sha256: its digest in the key of what it will compute, with which the files are compared; None: they are not.

    Raises:
        UserError: the folder cannot be loaded, or what is in it does not read texts or lacks tokens; or it was changed.
    """
    if sha256 is not None:
        check_unchanged(folder, sha256)
    loaded = load_folder(folder, dtype)
    network, tokenizer = loaded.network, loaded.tokenizer
    network.eval().requires_grad_(False)
    network.config.use_cache = False  # nothing is generated token by token
    if loaded.lm_head is not None:
        loaded.lm_head.requires_grad_(False).to(_device(gpu))
    network.to(_device(gpu))
    known = _token_embeddings(network)
    if known is not None and tokenizer.vocab_size > known:
        raise UserError(
            f"language model {str(folder)!r} has a tokenizer of {tokenizer.vocab_size} tokens and embeddings for "
            f"{known} alone; take the tokenizer that belongs to it, or resize its embeddings"
        )
    tokens = _ordinary_tokens(tokenizer, known)
    if len(tokens) < PROBED_TOKENS:
        raise UserError(f"language model {str(folder)!r} has a tokenizer without tokens; copy its tokenizer files too")
    try:
        nature = probe(network, tokens, _padding(tokenizer, known))
    except Exception as error:  # models of images, sounds, series: each fails in a way of its own
        other = "" if dtype == "float32" else "set llm_dtype: float32, "
        raise UserError(
            f"language model {str(folder)!r} ({type(network).__name__}) gives no vectors of texts alone: "
            f"{type(error).__name__}: {reason_of(error)}; {other}take one that reads texts, or copy the folder again"
        ) from error
    if pooling == "auto":
        pooling = "last" if nature.causal else "mean"
    lm_head = loaded.lm_head if nature.causal else None
    return LanguageModel(network, lm_head, tokenizer, pooling, *_frame(tokenizer), nature, known)


def _device(gpu: int) -> str:
    return f"cuda:{gpu}" if gpu >= 0 else "cpu"


def _token_embeddings(network: "PreTrainedModel") -> int | None:
    try:
        return len(network.get_input_embeddings().weight)
    except (NotImplementedError, AttributeError):  # one that hashes characters has none
        return None


def _ordinary_tokens(tokenizer: Any, known: int | None) -> list[int]:
    special = {*tokenizer.all_special_ids, tokenizer.pad_token_id}
    ordinary = [token for token in range(min(len(tokenizer), known or len(tokenizer))) if token not in special]
    return ordinary[:: max(1, len(ordinary) // PROBED_TOKENS)][:PROBED_TOKENS]


def _padding(tokenizer: Any, known: int | None) -> int:
    """The padding token, if the model has an embedding for it: a common way to add one leaves the model as it is."""
    token = tokenizer.pad_token_id
    return 0 if token is None or (known is not None and token >= known) else token


def _frame(tokenizer: Any) -> tuple[list[int], list[int]]:
    """What the tokenizer puts before and behind a text: BOS, [CLS] and [SEP], or nothing."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    framed = tokenizer("a", add_special_tokens=True)["input_ids"]
    for start in range(len(framed) - len(plain) + 1):
        if framed[start : start + len(plain)] == plain:
            return framed[:start], framed[start + len(plain) :]
    return [], []
