"""What is there before an experiment builds its model: its data, and what it needs from a language model."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.torch_utils import seed_everything

from fuxictr_llm import registry
from fuxictr_llm.common.checks import checked
from fuxictr_llm.common.errors import UserError, unknown
from fuxictr_llm.common.processes import is_main, process_state
from fuxictr_llm.common.progress import quiet_if
from fuxictr_llm.common.runs import Run, Stages
from fuxictr_llm.config.resolve import Experiment
from fuxictr_llm.data.build import built_columns, built_data
from fuxictr_llm.data.held import check_build, note_build
from fuxictr_llm.data.loader import check_labels
from fuxictr_llm.data.loader_choice import check_shared
from fuxictr_llm.data.prepare import prepare_raw_data
from fuxictr_llm.data.raw import check_shares_used
from fuxictr_llm.data.splits import make_split, split_files
from fuxictr_llm.host.batches import labels_of, task_settings
from fuxictr_llm.host.columns import check_embedded
from fuxictr_llm.host.evaluated import check_columns
from fuxictr_llm.llm.vectors.cold import prepare_cold_values
from fuxictr_llm.llm.vectors.values import prepare_value_vectors
from fuxictr_llm.training.monitoring import check_groups

FEW_BATCHES = 10
BAD_LOGLOSS = 0.8


def prepare_run(experiment: Experiment, model_id: str, *, encode_only: bool = False) -> Run:
    """Everything up to training: raw data, built data, what method and columns need from a language model.

    Args:
        encode_only: leave out what the method needs besides the language model's work.
    """
    run = prepare_data(experiment, model_id)
    if not encode_only:
        check_shared(run.feature_map, run.params)
    with quiet_if(experiment.params["verbose"] == 0):
        # Twice: the method may train networks with these columns, and may ask for vectors of more.
        _change(run, prepare_value_vectors(run, experiment.params))
        if run.params["method"]:
            method = registry.find_method(run.params["method"])
            prepare = method.model_cls.encode if encode_only else method.model_cls.prepare
            _change(run, prepare(checked(method.config_cls, experiment.params), run))
            _change(run, prepare_value_vectors(run, experiment.params))
        run.cold = prepare_cold_values(run, experiment.params)
    return run


def _change(run: Run, changes: dict[str, Any]) -> None:
    run.params |= changes
    if "feature_specs" in changes:
        check_build(run.feature_map)
        run.feature_map = load_feature_map(run.params, run.data_dir)


def prepare_data(experiment: Experiment, model_id: str) -> Run:
    """The run of an experiment, with raw and built data in place."""
    stages = Stages()
    own = {"model_id": model_id} if is_main() else {"model_id": model_id, "verbose": 0}
    params = make_data({**experiment.params, **own}, stages)
    data_dir = Path(params["data_root"]) / params["dataset_id"]
    feature_map = load_feature_map(params, data_dir)
    check_embedded([name for name, spec in feature_map.features.items() if spec["type"] != "meta"], params)
    _check_labels(feature_map, params)
    return Run(params, data_dir, feature_map, stages, raw=experiment.params)


def make_data(params: dict[str, Any], stages: Stages) -> dict[str, Any]:
    """Make raw and built data, whatever model they are for; the settings with the built files in place of raw ones."""
    torch.set_num_threads(params["num_threads"])
    seed_everything(params["seed"])
    with quiet_if(params["verbose"] == 0), process_state(params["gpu"]).main_process_first():
        with stages("prepare data") as facts:
            facts |= make_split(params) if params.get("resplit") else prepare_raw_data(params)
        with stages("build data"):
            return {**params, **built_data({**params, **split_files(params)})}


def _check_labels(feature_map: FeatureMap, params: Mapping[str, Any]) -> None:
    cls = registry.find_backbone(params["model"])
    task_settings(cls, feature_map, params)  # says now, before a language model is asked, what does not fit
    labels = labels_of(cls, feature_map)
    if unused := feature_map.labels[len(labels) :]:
        names = ", ".join(map(repr, unused))
        message = "%s has one task and learns label %r, not %s; MMoE, PLE and ShareBottom learn all"
        logging.warning(message, params["model"], labels[0], names)
    check_labels(labels, params)
    check_groups(labels, params)


def warn_of_few_batches(rows: int, params: Mapping[str, Any]) -> None:
    """Warn where an epoch has so few steps that training is likely to stop before the model has learnt.

    Args:
        rows: of the train split.
    """
    batches = -(-rows // params["batch_size"])
    if batches < FEW_BATCHES:
        logging.warning(
            "An epoch has %s (%d rows, batch_size %d): the model may have learnt little when training stops; "
            "set a batch_size of %d, say",
            "1 batch" if batches == 1 else f"{batches} batches",
            rows,
            params["batch_size"],
            1 << max(rows // (4 * FEW_BATCHES), 16).bit_length() - 1,  # a power of two
        )


def warn_of_logloss(metrics: Mapping[str, float], params: Mapping[str, Any]) -> None:
    """Warn where probabilities are far worse than one half for every row, and say which numbers are not scaled.

    Args:
        metrics: of the validation rows.
    """
    if not metrics.get("logloss", 0.0) > BAD_LOGLOSS:
        return
    numbers = [column for column in params.get("feature_cols") or () if column.get("type") == "numeric"]
    names = [column["name"] for column in numbers if column.get("active") and not column.get("normalizer")]
    flat = [name for each in names for name in ([each] if isinstance(each, str) else each)]
    hint = f"; give {', '.join(map(repr, flat))} a normalizer: StandardScaler or MinMaxScaler" if flat else ""
    logging.warning(
        "Validation logloss is %.3f, and 0.693 with a probability of one half for every row%s", metrics["logloss"], hint
    )


def load_feature_map(params: dict[str, Any], data_dir: Path) -> FeatureMap:
    """FuxiCTR's feature map of a built data set, with `use_features` and `feature_specs` applied.

    Raises:
        UserError: one of the two names a column that the data set does not have, or an order or columns in which
            an embedding is not shared as it was built, or a column has an encoder that FuxiCTR must not evaluate.
    """
    path = data_dir / "feature_map.json"
    built = built_columns(data_dir)
    if not built:
        raise UserError(f"{str(path)!r} is missing or damaged; remove it, and what FuxiCTR built with it")
    feature_map = FeatureMap(params["dataset_id"], str(data_dir))
    note_build(feature_map, data_dir)
    try:
        feature_map.load(str(path), params)
    except KeyError as error:
        raise unknown("column", error.args[0], built, "use_features or feature_specs") from error
    except RuntimeError as error:
        raise UserError(f"{str(path)!r} is of another data set than {params['dataset_id']!r}") from error
    check_columns(feature_map.features, repr(str(path)))
    check_shares_used(feature_map.features, built, params["dataset_id"])
    feature_map.num_fields = feature_map.get_num_fields()  # FuxiCTR counts before it applies use_features
    if params.get("group_id") and params["group_id"] not in feature_map.features:
        raise unknown("column", params["group_id"], list(feature_map.features), "group_id")
    return feature_map
