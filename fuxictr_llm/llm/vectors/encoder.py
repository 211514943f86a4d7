"""Texts -> a language model's vectors: each text once, in shards that are stored as soon as they are done.

The shards are made in this process, or by processes of Ray Data on one machine or many.

Shape symbols: `N` texts, `D_llm` width of the language model.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from fuxictr_llm.common import cache as store
from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.files import digest_of, digest_of_file, merged
from fuxictr_llm.common.progress import Progress
from fuxictr_llm.common.runs import Run, total
from fuxictr_llm.config.language_models import RowTextsConfig, ValueVectorsConfig
from fuxictr_llm.llm.model_files import digest_of_model, find_language_model
from fuxictr_llm.llm.texts.row_texts import RowIndex, sha256_of_texts
from fuxictr_llm.llm.vectors.given import given_stores
from fuxictr_llm.llm.vectors.store import Shard, ShardWriter, VectorStore, find_or_write, part_of

Item = TypeVar("Item")
ERROR = "error"
KIND = "text_vectors"
SHOW_PROGRESS_FROM = 500
# Raise it when the same settings would give other vectors.
VERSION = 2


def ray_map(
    function: Callable[[Item], Any], items: Iterable[Item], workers: int, on_gpu: bool = False
) -> Iterator[dict[str, Any]]:
    """What the function gives for each item, in any order, from a pool of processes that each unpickle it once.

    Args:
        function: gives a dataclass of plain values, which comes back as a dict; what it loads when it is first called
            stays loaded.
        workers: how many processes; with fewer items so many.
        on_gpu: whether each needs a GPU of its own.

    Raises:
        UserError: the function raised it.
    """
    items = list(items)
    if not items:
        return
    import ray

    started = not ray.is_initialized()
    if started:
        ray.init(log_to_driver=False, include_dashboard=False, logging_level=logging.ERROR)
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False
        threads = max(1, int(ray.cluster_resources().get("CPU", 1)) // workers)
        rows = ray.data.from_items([{"item": item} for item in items], override_num_blocks=len(items))
        answers = rows.map_batches(
            _Worker,
            fn_constructor_args=(ray.put(function), threads),
            batch_size=1,
            concurrency=min(workers, len(items)),
            num_cpus=threads,
            num_gpus=1 if on_gpu else None,
        )
        # One block an item; none is fetched ahead, so that an answer is here as soon as it is made.
        for block in answers.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            for row in block.to_pylist():
                if ERROR in row:
                    raise UserError(row[ERROR])
                yield row
    finally:
        if started:
            ray.shutdown()


class _Worker:
    def __init__(self, function: Any, threads: int):
        import ray
        import torch

        torch.set_num_threads(threads)
        self.function = ray.get(function) if isinstance(function, ray.ObjectRef) else function

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        (item,) = batch["item"].tolist()
        try:
            return {key: [value] for key, value in asdict(self.function(item)).items()}
        except UserError as error:  # Ray would wrap it
            return {ERROR: [str(error)]}


class TextEncoder:
    """Asks the language model of a config for vectors of texts; loads it only when there is something to ask.

    Args:
        config: names the language model and how it makes a vector.
        gpu: index of the GPU, -1 for the CPU.
        adapter: a folder with LoRA weights that the language model was tuned to, or None.

    Attributes:
        settings: all that a text's vector depends on, besides the text.
        encoded: how many texts were not in the store.
        seconds: of each store that was asked for, how long its making took; None: not known.
        tokens: of each, how many the language model read for it; None: not known.

    Raises:
        UserError: there is no such language model.
    """

    def __init__(self, config: RowTextsConfig | ValueVectorsConfig, gpu: int, adapter: Path | None = None):
        self.config, self.gpu, self.adapter = config, gpu, adapter
        self.folder = find_language_model(config.language_model).absolute()
        asked = {
            "language_model": {"name": config.language_model, "sha256": digest_of_model(self.folder)},
            "device": "gpu" if gpu >= 0 else "cpu",  # they round differently
        }
        self.settings = merged(asked, _text_settings(config, gpu))
        if adapter:
            self.settings["adapter_sha256"] = digest_of({path.name: digest_of_file(path) for path in adapter.iterdir()})
        self.encoded = 0
        self.seconds: list[float | None] = []
        self.tokens: list[int | None] = []
        self._model: Any = None
        self._show: Callable[[int], Any] = _nothing

    def __call__(self, values: Sequence[str], head: str = "") -> np.ndarray:
        """Vectors `[N, D_llm]` of the head followed by each value, in float32; zeros where there is no token.

        Values are cut at `llm_max_value_tokens`, the head never is.

        Raises:
            UserError: the language model cannot be loaded, the texts are too long for it, or the store cannot be
                written.
        """
        rows = {value: row for row, value in enumerate(dict.fromkeys(values))}
        return (
            self.store_of(list(rows), head)
            .gather(torch.tensor([rows[value] for value in values], dtype=torch.long))
            .numpy()
        )

    def store_of(self, texts: Sequence[str], head: str = "", **facts: Any) -> VectorStore:
        """The store with a vector for each text, in their order; equal texts are encoded as often as they occur.

        Args:
            texts: asked for slice after slice, so that N of them need not be in memory.
            head: put before each.
            facts: what the manifest should say besides.

        Raises:
            UserError: as above.
        """
        keys = {"head": head, "texts_sha256": sha256_of_texts(texts), "code": store.code_of(__name__)}
        made_from = merged(self.settings, keys)
        before, started = self.encoded, time.perf_counter()
        make = partial(self._make, texts, head, store.entry_dir(KIND, made_from).absolute())
        noted = {"texts": len(texts), **facts}
        vectors = find_or_write(KIND, made_from, len(texts), make, noted, over=self._shared_out)
        if count := self.encoded - before:
            seconds = time.perf_counter() - started
            logging.info("Encoded %d texts in %.1f s (%.1f texts/s)", count, seconds, count / seconds)
        self.seconds.append(vectors.seconds)
        self.tokens.append(vectors.tokens)
        _warn_of_cut(vectors, self.config)
        return vectors

    def _shared_out(self, write: ShardWriter, numbers: Sequence[int]) -> Iterator[Shard]:
        on_ray = isinstance(self.config, RowTextsConfig) and self.config.encoder == "ray"
        shards: Iterable[Shard] = map(write, numbers)
        if isinstance(self.config, RowTextsConfig) and on_ray:
            shards = (Shard(**row) for row in ray_map(write, numbers, self.config.ray_workers, self.gpu >= 0))
        done = write.rows - sum(map(write.rows_of, numbers))
        with Progress("encoding texts", write.rows, "texts", done=done) as progress:
            self._show = progress.update
            for shard in shards:
                self.encoded += shard.rows
                if on_ray:  # the workers' own bars are not seen
                    progress.update(shard.rows)
                yield shard

    def _make(
        self, texts: Sequence[str], head: str, folder: Path, start: int, stop: int
    ) -> tuple[np.ndarray, int, int]:
        from fuxictr_llm.llm.progress import UnfinishedShard  # heavy, as what loads the model

        model = self.model
        wholes = [f"{head} {text}" if head else text for text in texts[start:stop]]
        logging.info("Encoding texts %d to %d of %d with %s", start + 1, stop, len(texts), self.config.language_model)
        limit = len(model.tokens(head)) + self.settings[_limit_key(self.config)]
        kept = UnfinishedShard(part_of(folder, start), self._show)
        return model.encode(wholes, limit=limit, kept=kept).numpy(), kept.cut, kept.tokens

    @property
    def model(self) -> Any:
        """The language model, loaded when it is first asked for."""
        if self._model is None:
            # Heavy libraries are imported only where something has to be asked of a language model.
            from fuxictr_llm.llm.language_model import load_language_model

            settings = self.settings
            self._model = load_language_model(
                self.folder,
                settings["llm_dtype"],
                settings["llm_pooling"],
                self.gpu,
                settings["language_model"]["sha256"],
            )
            if self.adapter:
                from fuxictr_llm.llm.lora import load_adapted

                load_adapted(self._model, self.adapter)
        return self._model

    def __getstate__(self) -> dict[str, Any]:
        # A worker loads a model of its own, and sees no GPU but its own.
        return {**vars(self), "_model": None, "_show": _nothing, "gpu": min(self.gpu, 0)}


def unit_vectors(
    config: RowTextsConfig, run: Run, index: RowIndex, adapter: Path | None = None, tuned: bool = False
) -> tuple[VectorStore, ...]:
    """The vectors of each unit's texts: those given with `text_vectors`, or those of a language model.

    Args:
        config: which language model, and how it is asked.
        run: the experiment under way; the stage `encode` and a note on each unit are added to it.
        index: whose units' texts are encoded.
        adapter: as `TextEncoder`.
        tuned: whether given vectors must be those of a language model with an adapter, or of one without.

    Raises:
        UserError: given vectors are of other texts or another language model, or damaged; or as `TextEncoder`.
    """
    with run.stages("encode") as stage:
        if config.text_vectors:
            settings = _text_settings(config, run.params["gpu"])
            stores = given_stores(Path(config.text_vectors), config, settings, index.units, tuned)
            for store_of_unit in stores:
                _warn_of_cut(store_of_unit, config)
            stage |= {"given": True}
        else:
            encoder = TextEncoder(config, run.params["gpu"], adapter)
            dataset_id = run.params["dataset_id"]
            stores = [encoder.store_of(unit, unit=unit.name, data_set=dataset_id) for unit in index.units]
            stage |= {"rows": encoder.encoded} if encoder.encoded else {"cached": True}
        stage["made_in"] = total(vectors.seconds for vectors in stores)
        stage["tokens_read"] = total(vectors.tokens for vectors in stores)
    run.notes["text_vectors"] = {
        unit.name: {
            "path": str(vectors.folder),
            "texts": vectors.rows,
            **({"cut": vectors.cut} if vectors.cut else {}),
            "dim": vectors.dim,
            "sha256": vectors.sha256,
        }
        for unit, vectors in zip(index.units, stores, strict=True)
    }
    for name, note in run.notes["text_vectors"].items():
        logging.info("Vectors of the %d texts of unit %r: %s", note["texts"], name, note["path"])
    return tuple(stores)


def _nothing(_: int) -> None:
    pass


def _warn_of_cut(vectors: VectorStore, config: RowTextsConfig | ValueVectorsConfig) -> None:
    if vectors.cut:
        key = _limit_key(config)
        message = "%d of %d texts are longer than %d tokens and are cut; raise %s to have them read whole"
        logging.warning(message, vectors.cut, vectors.rows, getattr(config, key), key)


def _text_settings(config: RowTextsConfig | ValueVectorsConfig, gpu: int) -> dict[str, Any]:
    """What a vector depends on, besides the text and the weights."""
    limit = _limit_key(config)
    return {
        "llm_dtype": config.dtype_on(gpu),
        "llm_pooling": "mean" if config.llm_pooling == "auto" else config.llm_pooling,
        limit: getattr(config, limit),
        "version": VERSION,
    }


def _limit_key(config: RowTextsConfig | ValueVectorsConfig) -> str:
    return "llm_max_text_tokens" if isinstance(config, RowTextsConfig) else "llm_max_value_tokens"
