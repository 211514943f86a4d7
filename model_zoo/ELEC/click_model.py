"""A language model with a head that learns how likely a row is clicked: ELEC's adaptation with LoRA.

`s = [v_1; ...; v_U]`, `h = MLP(s)`, `p = sigmoid(w h + b)`, binary cross entropy on the click. Gradients go into LoRA
and the head; the head is thrown away afterwards, since the vectors are adapted as those of an untuned model are.

Shape symbols: `B` rows, `U` units of text of a row, `D_llm` width of the language model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from transformers import set_seed

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.files import digest_of
from fuxictr_llm.llm.language_model import LanguageModel
from fuxictr_llm.llm.lora import Schedule, check_device, train, with_lora

from .config import ELECConfig

# The head's place in the language model: there peft trains it, and keeps it in checkpoints, along with LoRA.
HEAD = "click_head"
WIDTH = 64


@dataclass(frozen=True)
class DrawnRows:
    """Rows drawn from a split, with their texts.

    Attributes:
        texts: of each unit, those that the rows have, each once.
        places: int64 `[n, U]`, which of them a row has.
        clicks: float32 `[n]`.
    """

    texts: list[list[str]]
    places: np.ndarray
    clicks: np.ndarray

    def __len__(self) -> int:
        return len(self.clicks)

    @property
    def sha256(self) -> str:
        return digest_of([self.texts, self.places.tolist(), self.clicks.tolist()])


class ClickHead(nn.Module):
    """`[B, U, D_llm] -> [B]`, the logit of a click. Each unit is normalised apart: hidden states have outlying dims."""

    def __init__(self, units: int, dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim, elementwise_affine=False)  # the layer behind it scales and shifts
        self.transform = nn.Sequential(nn.Linear(units * dim, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU())
        self.predict = nn.Linear(WIDTH, 1)

    def forward(self, vectors: Tensor) -> Tensor:
        return self.predict(self.transform(self.norm(vectors).flatten(1))).squeeze(-1)


class ClickBatches:
    """Batches of rows for a language model with a `ClickHead`; equal texts of a batch are encoded once.

    Args:
        rows: with their texts, each cut at `max_tokens`.

    Raises:
        UserError: a text is longer than the language model can read.
    """

    def __init__(self, language_model: LanguageModel, rows: DrawnRows, max_tokens: int):
        self.language_model, self.rows = language_model, rows
        self.places, self.clicks = torch.from_numpy(rows.places), torch.from_numpy(rows.clicks)
        self.tokens = [[self._tokens(text, max_tokens) for text in texts] for texts in rows.texts]
        longest = max(len(tokens) for unit in self.tokens for tokens in unit)
        if longest > (language_model.positions or longest):
            raise UserError(
                f"a text of {longest} tokens does not fit into the {language_model.positions} positions of the "
                "language model; lower llm_max_text_tokens, or take another language_model"
            )

    def _tokens(self, text: str, max_tokens: int) -> list[int]:
        return self.language_model.framed(self.language_model.tokens(text, max_tokens))

    def collate(self, rows: Sequence[int]) -> dict[str, Any]:
        """Indices of rows -> `clicks` `[B]` and for each unit its texts and `places` `[B]`, which a row has."""
        units = []
        for tokens, places in zip(self.tokens, self.places[list(rows)].T, strict=True):
            distinct, places = torch.unique(places, return_inverse=True)
            texts = [tokens[text] for text in distinct.tolist()]
            # A text without a token has zeros, as where it is encoded later; something must stand in its place here.
            batch = self.language_model.batch([text or [self.language_model.padding] for text in texts])
            units.append({**batch, "real": torch.tensor([[bool(text)] for text in texts]), "places": places})
        return {"units": units, "clicks": self.clicks[list(rows)]}

    def logits(self, model: nn.Module, batch: dict[str, Any]) -> Tensor:
        """`[B]`, with gradients, of the wrapped language model."""
        vectors = []
        for unit in batch["units"]:
            texts = self.language_model.embed(unit, model)
            vectors.append((texts * unit["real"].to(texts.device))[unit["places"].to(texts.device)])
        return getattr(model, HEAD)(torch.stack(vectors, dim=1))


def learn_clicks(
    language_model: LanguageModel, learnt: DrawnRows, valid: DrawnRows, config: ELECConfig, checkpoints: Path
) -> dict[str, Any]:
    """Tune the language model in place on the clicks of `learnt`; facts of the tuning.

    It ends with the weights of the epoch with the best AUC on `valid`.

    Args:
        checkpoints: a folder for this tuning alone; one that was killed goes on from there.

    Raises:
        UserError: LoRA finds nothing to tune, a text is too long, the loss is no number, or the disk is full.
    """
    check_device(language_model.model)
    set_seed(config.click_seed)
    batches = ClickBatches(language_model, learnt, config.llm_max_text_tokens)
    weight = next(language_model.model.parameters())
    head = ClickHead(learnt.places.shape[1], language_model.nature.width).to(weight.device)
    language_model.model.add_module(HEAD, head)
    language_model.model = with_lora(language_model.model, config, also_trained=[HEAD])

    def loss(model: nn.Module, batch: dict[str, Any]) -> Tensor:
        logits = batches.logits(model, batch)
        return functional.binary_cross_entropy_with_logits(logits, batch["clicks"].to(logits.device))

    def measure() -> float:
        return auc(language_model, valid, config.llm_max_text_tokens)

    tuned = train(language_model, range(len(learnt)), batches.collate, loss, _schedule(config), checkpoints, measure)
    return {
        "rows": len(learnt),
        "valid_rows": len(valid),
        "texts": [len(texts) for texts in learnt.texts],
        "epochs": tuned.epochs,
        "best_epoch": tuned.best_epoch,
        "auc": tuned.measurements[tuned.best_epoch - 1][1],
        "aucs": tuned.measurements,
        "losses": tuned.losses,
        "tuned_parameters": tuned.parameters,
    }


@torch.no_grad()
def auc(language_model: LanguageModel, rows: DrawnRows, max_tokens: int) -> float:
    """AUC of the language model and its head on the rows."""
    model = language_model.model
    training = model.training
    model.eval()
    vectors = [language_model.encode(texts, limit=max_tokens) for texts in rows.texts]
    places = torch.from_numpy(rows.places)
    rows_vectors = torch.stack([unit[places[:, u]] for u, unit in enumerate(vectors)], dim=1)
    logits = getattr(model, HEAD)(rows_vectors.to(next(model.parameters()).device))
    model.train(training)
    return round(float(roc_auc_score(rows.clicks, logits.cpu().numpy())), 6)


def _schedule(config: ELECConfig) -> Schedule:
    return Schedule.from_config(
        config, "click", name="Click tuning", measured="AUC on validation", remedy="lower click_learning_rate"
    )
