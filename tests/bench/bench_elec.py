"""ELEC: encoding against a loop as users write it, and the vanilla network against the plain backbone."""

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from measuring import criteo_like, in_turn, our_step, seconds

from fuxictr_llm.common.checks import checked
from fuxictr_llm.config.resolve import load_experiment
from fuxictr_llm.data.loader import describe_data
from fuxictr_llm.distillation import Teacher
from fuxictr_llm.experiment.preparation import prepare_data
from fuxictr_llm.host.batches import synthetic_batch
from fuxictr_llm.llm.language_model import load_language_model
from fuxictr_llm.llm.model_files import find_language_model
from fuxictr_llm.llm.texts.row_texts import RowIndex, index_rows
from fuxictr_llm.llm.texts.units import RowKeys
from fuxictr_llm.llm.vectors.store import find_or_write
from fuxictr_llm.model_zoo.ELEC import ELEC, ELECConfig
from fuxictr_llm.model_zoo.ELEC.gain import Gain
from fuxictr_llm.model_zoo.ELEC.head import with_vector
from fuxictr_llm.model_zoo.ELEC.vectors import RowVectors, in_store
from fuxictr_llm.serving.export import export_run
from support import enhanced, params, save_run

EXPID = "DeepFM_ELEC_movielens100k"
SAMPLE = 50  # rows of MovieLens-100K whose texts are encoded
ROWS, BATCH, WIDTH = 60_000, 4096, 32


class AgainstPlain(NamedTuple):
    """The vanilla network and what its training needs, as ratios to the plain backbone."""

    inference: float
    more_parameters: int
    distillation: float
    lookup: float


def compare_with_plain(rounds: int) -> AgainstPlain:
    """DeepFM on 39 fields, taught by a gain network that gets cached vectors of the rows."""
    plain, vanilla = criteo_like("DeepFM"), criteo_like("DeepFM", ELEC)
    gain = criteo_like("DeepFM", Gain, vector_width=WIDTH)
    gain.feature_map = with_vector(gain.feature_map, WIDTH)
    rows = synthetic_batch(plain.feature_map, rows=ROWS)
    batch = {name: column[:BATCH] for name, column in rows.items()}
    with tempfile.TemporaryDirectory() as folder:
        row_vectors = cached_vectors(rows, list(plain.feature_map.features), folder)
        vanilla.enhancement.learn_from(Teacher(gain, add=row_vectors))
        plain_step, vanilla_step = (partial(our_step(model), batch) for model in (plain, vanilla))
        distillation = in_turn(vanilla_step, plain_step, rounds)
        lookup = in_turn(lambda: row_vectors(batch), plain_step, rounds)
    vanilla.enhancement.on_train_end(None)

    @torch.inference_mode()
    def predict(model: Any) -> None:
        model.forward(batch)

    for model in (plain, vanilla):
        model.eval()
    inference = in_turn(lambda: predict(vanilla), lambda: predict(plain), 3 * rounds)
    vanilla_size, plain_size = (sum(weight.numel() for weight in model.parameters()) for model in (vanilla, plain))
    return AgainstPlain(inference, vanilla_size - plain_size, distillation, lookup)


def cached_vectors(rows: dict[str, torch.Tensor], columns: list[str], folder: str) -> RowVectors:
    """Random vectors of rows in a store, found by a key of all columns."""
    row_keys = RowKeys([columns])
    keys = row_keys(rows).sort().values
    index = RowIndex((), row_keys, keys, torch.empty(len(keys), 0), torch.ones(len(keys), dtype=torch.bool))
    with patch.dict(os.environ, FUXICTR_LLM_CACHE=folder):
        store = find_or_write("bench", {}, ROWS, lambda start, stop: torch.randn(stop - start, WIDTH).numpy())
    return in_store(index, store)


def heavy_libraries_of_export() -> int:
    """How many of the libraries of language models a process has imported that has served an exported network."""
    code = (
        "import sys; from fuxictr_llm import load_model; from fuxictr_llm.batches import synthetic_batch; "
        "served = load_model(sys.argv[1]); served.predict(synthetic_batch(served.model.feature_map, rows=8)); "
        "print(sum(name in sys.modules for name in ('transformers', 'peft')))"
    )
    with tempfile.TemporaryDirectory() as folder:
        config = {"model": "DeepFM", "method": "ELEC", "dataset_id": "small", **params("DeepFM")}
        save_run(enhanced("DeepFM", ELEC), config, folder)
        export = export_run(f"{folder}/a", f"{folder}/served")
        answer = subprocess.run(
            [sys.executable, "-c", code, str(export)], check=True, capture_output=True, text=True, timeout=300
        )
    return int(answer.stdout.split()[-1])


class EncodingGains(NamedTuple):
    """How many times as many texts a second each of our ways gives, and on what."""

    texts: int
    tokens: float
    head: float
    batching: float
    bfloat16: float
    deduplication: float
    dtype: str
    processor: str

    @property
    def equal_dtype(self) -> float:
        return self.head * self.batching

    @property
    def together(self) -> float:
        return self.equal_dtype * self.deduplication * (self.bfloat16 if self.dtype == "bfloat16" else 1)


def compare_encoding(passes: int) -> EncodingGains:
    """Ways to encode the texts of some rows of MovieLens-100K with SmolLM2, in turn.

    Deduplication is counted, not timed: the texts of all rows to those that differ.
    """
    run = prepare_data(load_experiment(EXPID), "unused")
    config = checked(ELECConfig, run.params)
    index = index_rows(config, run)
    drawn = index.positions[torch.randperm(len(index), generator=torch.Generator().manual_seed(0))[:SAMPLE]]
    texts = [unit[row] for unit, rows in zip(index.units, drawn.T.tolist(), strict=True) for row in rows]
    folder = find_language_model(config.language_model)
    ours, halved = (load_language_model(folder, dtype, "mean", gpu=-1) for dtype in ("float32", "bfloat16"))
    loop = plain_loop(folder)
    head, batching = ratios(
        [lambda: loop(texts, head=True), lambda: loop(texts, head=False), lambda: ours.encode(texts)], passes
    )
    # Few: a processor without instructions for bfloat16 takes seconds a text.
    (bfloat16,) = ratios([lambda: ours.encode(texts[:2]), lambda: halved.encode(texts[:2])], 1)
    all_texts = sum(describe_data(run.params, run.data_dir)["rows"].values()) * len(index.units)
    return EncodingGains(
        len(texts),
        statistics.mean(len(ours.tokens(text)) for text in texts),
        head,
        batching,
        bfloat16,
        all_texts / sum(map(len, index.units)),
        config.dtype_on(-1),
        torch.backends.cpu.get_cpu_capability(),
    )


def plain_loop(folder: Path) -> Callable[..., list[torch.Tensor]]:
    """One text after the other, in float32, as users write it; or without the head of the language model."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder).float()

    @torch.no_grad()
    def encode(texts: list[str], head: bool) -> list[torch.Tensor]:
        vectors = []
        for text in texts:
            tokens = tokenizer(text, return_tensors="pt")
            if head:
                hidden = model(**tokens, output_hidden_states=True).hidden_states[-1]
            else:
                hidden = model.model(**tokens).last_hidden_state
            vectors.append(hidden.mean(dim=1))
        return vectors

    return encode


def ratios(ways: list[Callable[[], Any]], passes: int) -> list[float]:
    """How much longer each way takes than the next, medians of passes; one before them warms up."""
    taken = [[seconds(way) for way in ways] for _ in range(passes + 1)][1:]
    return [statistics.median(row[i] / row[i + 1] for row in taken) for i in range(len(ways) - 1)]
