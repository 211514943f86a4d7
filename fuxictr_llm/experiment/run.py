"""A resolved experiment -> a trained model, its metrics and its run record."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from fuxictr.pytorch.models import BaseModel
from fuxictr.pytorch.torch_utils import get_device
from fuxictr.utils import print_to_json

from fuxictr_llm import registry
from fuxictr_llm.common.checks import check_gpu
from fuxictr_llm.common.errors import UserError, reason_of
from fuxictr_llm.common.files import (
    explain_write_errors,
    merged,
    own_folder,
    read_json,
    remove_abandoned,
    writable_dir,
)
from fuxictr_llm.common.processes import from_main, is_main, of_processes, process_state, under_torchrun
from fuxictr_llm.common.progress import quiet_if
from fuxictr_llm.common.run_files import RECORD, run_files
from fuxictr_llm.common.runs import Run, versions
from fuxictr_llm.config.origins import origin_of
from fuxictr_llm.config.resolve import NOT_IN_IDENTITY, Experiment
from fuxictr_llm.data.build import check_there
from fuxictr_llm.data.held import check_build, holding
from fuxictr_llm.data.loader import describe_data, make_loaders
from fuxictr_llm.data.loader_choice import check_shared_before
from fuxictr_llm.data.slices import FrequencySlices, predict
from fuxictr_llm.enhancement.model import added_columns_of, enhance
from fuxictr_llm.experiment.cold import add_cold_values, check_cold_values
from fuxictr_llm.experiment.log_file import logging_to, quiet
from fuxictr_llm.experiment.predictions import PREDICTIONS, write_predictions
from fuxictr_llm.experiment.preparation import prepare_run, warn_of_few_batches, warn_of_logloss
from fuxictr_llm.experiment.record import (
    append_result_line,
    code_digests,
    count_parameters,
    hardware,
    measured_serving,
    peak_memory,
    put_in_place,
    source_digests,
    typed_command,
    warn_of_other_code,
    weights_kept,
)
from fuxictr_llm.experiment.summary import log_summary
from fuxictr_llm.host.batches import labels_of
from fuxictr_llm.host.columns import describe_feature_map
from fuxictr_llm.serving.sample import sample_of
from fuxictr_llm.training.build import OTHER_MODEL_ROOT, build
from fuxictr_llm.training.checkpoints import Checkpoints
from fuxictr_llm.training.devices import check_together, evaluate
from fuxictr_llm.training.listener import Listener, Several
from fuxictr_llm.training.loop import fit
from fuxictr_llm.training.precision import check_precision
from fuxictr_llm.training.trackers import Trackers

CHANGED = {"backbone": "changed while it ran"}  # in a record, in place of the code's digests


@dataclass
class Result:
    """What `run_experiment` gives back: the trained model, how it did, and the content of the run record."""

    model: BaseModel
    run: Run
    record: dict[str, Any]


def run_experiment(experiment: Experiment, *, fresh: bool = False, listener: Listener | None = None) -> Result:
    """Prepare, build, train on train, stop early on valid, evaluate on test, and write it all down.

    Files, in the folder `<model_root>/<dataset_id>/<model_id>`: `<model_id>.model`, `.log`, `.run.json`, pictures of
    the training and of the method, with `keep_predictions` the test rows' predictions as `.predictions.safetensors`;
    and a line in `<config name>.csv`, in FuxiCTR's form. The weights take their place only when all is done. Until
    then, checkpoints are in `<expid>_<digest of the settings>.checkpoint`, from which an interrupted run goes on.

    Args:
        fresh: train anew, whatever checkpoints there are.
        listener: hears how training goes; of several processes, that of the main one.

    Raises:
        UserError: something that the user can put right.
        Stopped: the listener ended training; neither record nor weights are left.
    """
    with quiet_if(experiment.params["verbose"] == 0):
        return _run(experiment, fresh, listener or Listener())


def _run(experiment: Experiment, fresh: bool, listener: Listener) -> Result:
    check_gpu(experiment.params["gpu"])
    check_precision(experiment.params, get_device(experiment.params["gpu"]))
    if under_torchrun():
        process_state(experiment.params["gpu"])  # connects them
        check_together(experiment.params)
    if not experiment.params.get("valid_data"):
        raise UserError(f"data set {experiment.params['dataset_id']!r} names no valid_data; training stops early on it")
    check_there(experiment.params)
    check_shared_before(experiment.params)
    folder = Path(experiment.params["model_root"]) / experiment.params["dataset_id"]
    # An interrupted run is looked for here, whatever other runs have ended since.
    home = writable_dir(run_files(folder, experiment.run_id).parent, OTHER_MODEL_ROOT)
    model_id = from_main(lambda: choose_model_id(experiment, folder))
    files = run_files(folder, model_id)
    writable_dir(files.parent, OTHER_MODEL_ROOT)
    writable_dir(Path(), "run in a folder that can be written to: the result line goes there")
    started, sources = datetime.now(), source_digests(experiment.params)
    if not is_main():
        return _take_part(experiment, files, home, sources)
    # `own` is there for the whole run, and is removed even where the process is killed: here, by a later run.
    for other in folder.iterdir():
        remove_abandoned(other)
    with logging_to(Path(f"{files}.log")), holding(experiment.params), own_folder(Path(f"{files}.model")) as own:
        logging.info("Params: %s", print_to_json(experiment.params))
        warn_of_other_code(files, sources)
        run = prepare_run(experiment, model_id)
        unfinished = own / "weights.model"
        # Kept under a name with the digest of the settings, which no run with other settings takes.
        kept = home / f"{experiment.full_id}.unfinished.model"
        checkpoints = checkpoints_of(run, home, experiment, sources)
        if fresh:
            checkpoints.remove()
        trackers = Trackers(run.params.get("trackers") or (), home, experiment.full_id, run.params["gpu"])
        with checkpoints, weights_kept(unfinished, kept, run.stages), trackers:
            model, record = _train(run, unfinished, checkpoints, Several(trackers, listener))
            trackers.tested(record["metrics"]["test"])
            record["model_id"] = choose_model_id(experiment, folder)  # another may have ended meanwhile
            files = run_files(folder, record["model_id"])
            record |= {"time": started.isoformat(timespec="seconds"), "command": typed_command()}
            if code_digests(experiment.params) != sources["code"]:
                logging.warning("the code of this run was changed while it ran: its record says so")
                sources["code"] = CHANGED
            record |= {"expid": experiment.expid, "config": experiment.params}
            record |= {"config_sha256": experiment.sha256, "sources": sources}
            if run.params.get("measure_serving"):
                record["served"] = measured_serving(record, unfinished)
            with explain_write_errors(files.parent, OTHER_MODEL_ROOT):
                files.parent.mkdir(exist_ok=True)
                if "predictions_sha256" in record:
                    unfinished.with_name(PREDICTIONS).replace(f"{files}{PREDICTIONS}")
                put_in_place(unfinished, files, record)
            checkpoints.remove()
        model.checkpoint = str(Path(f"{files}.model").absolute())
        try:
            append_result_line(Path(f"{experiment.config_name}.csv"), record)
        except UserError as error:
            raise UserError(f"{error}; the run is complete but for this line, see {files}{RECORD}") from error
        pictures = [*draw_pictures(model, run, files), *draw_training(record, files)]
        log_summary(record, run.stages, files, pictures)
    return Result(model, run, record)


def _take_part(experiment: Experiment, files: Path, home: Path, sources: Mapping[str, Any]) -> Result:
    """What the other processes of torchrun do: all of the main one's work, of which that one alone writes and logs."""
    with quiet():
        run = prepare_run(experiment, files.name)
        with checkpoints_of(run, home, experiment, sources) as checkpoints:
            model, record = _train(run, Path(f"{files}.model"), checkpoints)
    return Result(model, run, record)


def build_model(run: Run) -> BaseModel:
    """The model of a run with fresh weights, after seeding everything."""
    params = run.params
    cls = registry.find_backbone(params["model"])
    if params["method"]:
        cls = enhance(cls, registry.find_method(params["method"]).model_cls)
    return build(cls, run.feature_map, params)


def checkpoints_of(run: Run, home: Path, experiment: Experiment, sources: Mapping[str, Any]) -> Checkpoints:
    """The checkpoints of a run's training.

    Args:
        home: the folder of the run's files.
        sources: digests of code and files that the run depends on.
    """
    place = home / f"{experiment.full_id}.checkpoint"
    for other in sorted(home.parent.glob(f"*/{experiment.expid}_????????.checkpoint")):
        if other != place:
            logging.info("%s is of this expid with other settings: it is not used, and stays", other)
    settings = {key: value for key, value in run.params.items() if key not in NOT_IN_IDENTITY}
    data = describe_data(run.params, run.data_dir)["sha256"]
    device = "gpu" if run.params["gpu"] >= 0 else "cpu"
    made_from = merged(settings, {"data": data, "sources": sources, "device": device}, of_processes())
    return Checkpoints.of_training(place, made_from, run.params)


def _train(
    run: Run, checkpoint: Path, checkpoints: Checkpoints, listener: Listener | None = None
) -> tuple[BaseModel, dict[str, Any]]:
    """Train, evaluate, and write the weights to `checkpoint`; the model and the record."""
    params, stages = run.params, run.stages
    data = describe_data(params, run.data_dir)
    model = build_model(run)
    model.count_parameters()
    model.checkpoint = str(checkpoint)
    if run.cold is not None:
        check_cold_values(model, run.cold)
    enhancement = model.enhancement if params["method"] else None
    if enhancement is not None:
        enhancement.on_train_begin(run)
        model.load_state_dict({**model.state_dict(), **enhancement.backbone_start(run)})
    with stages("train") as facts:
        train_rows, valid_rows = make_loaders(run.feature_map, params, "train")
        warn_of_few_batches(train_rows.num_samples, params)
        test_rows = make_loaders(run.feature_map, params, "test") if params.get("test_data") else None
        slices = FrequencySlices.from_run(run) if test_rows is not None else None
        trained = fit(model, train_rows, valid_rows, params, checkpoints, listener=listener)
        if trained.seconds_before:
            facts["made_in"] = trained.seconds
        facts["epochs"] = model._epoch_index + 1
        facts["rows"] = train_rows.num_samples * facts["epochs"]
    if enhancement is not None:
        enhancement.on_train_end(run)
    parameters, cold_facts = count_parameters(model), None  # those that were trained
    if run.cold is not None:
        cold_facts, loaders = add_cold_values(model, run.cold, run)
        valid_rows, test_rows = loaders["valid"], loaders.get("test")
    logging.info("****** Validation evaluation ******")
    metrics = {"valid": evaluate(model, valid_rows, "validation"), "test": {}}
    warn_of_logloss(metrics["valid"], params)
    if test_rows is not None:
        logging.info("******** Test evaluation ********")
        with stages("test") as facts:
            facts["rows"] = test_rows.num_samples
            metrics["test"] = evaluate(model, test_rows, "test")
    kept = {}
    if test_rows is not None and params.get("keep_predictions"):
        predicted = predict(model, test_rows)
        if is_main():
            path = checkpoint.with_name(PREDICTIONS)
            with explain_write_errors(path, OTHER_MODEL_ROOT):
                kept = {"predictions_sha256": write_predictions(path, predicted.y_true, predicted.y_pred)}
    check_build(run.feature_map)
    record = {
        "model_id": params["model_id"],
        "seed": params["seed"],
        "labels": labels_of(type(model), run.feature_map),
        "metrics": metrics,
        "slices": slices.of_model(model, test_rows) if slices is not None and test_rows is not None else None,
        "cold_values": cold_facts,
        "networks": run.networks,
        "sample": sample_of(model, valid_rows if test_rows is None else test_rows) if is_main() else None,
        "best_epoch": trained.best_epoch,
        "evaluations": [evaluation._asdict() for evaluation in trained.evaluations],
        "evaluated_at": list(trained.evaluated_at),
        "stages": stages.done,
        "backbone": origin_of(registry.find_backbone(params["model"])).record(),
        "parameters": parameters,
        "data": data,
        "feature_map": describe_feature_map(run.feature_map),
        "added_columns": added_columns_of(model),
        "notes": run.notes,
        "peak_memory": peak_memory(),
        "hardware": hardware(params["gpu"]),
        "versions": versions(),
        **kept,
    }
    return model, record


def draw_pictures(model: BaseModel, run: Run, files: Path) -> list[Path]:
    """Save the method's pictures as `<files>.<name>.png`; one that cannot be drawn costs a warning, not the run."""
    if not run.params["method"] or not run.params.get("pictures", True):
        return []
    try:
        figures = model.enhancement.pictures(run)
        if not figures:
            return []
        from fuxictr_llm.common.pictures import save_figures  # matplotlib takes a second to import

        return save_figures(figures, files)
    except Exception as error:
        logging.warning("no pictures of %s: %s: %s", files.name, type(error).__name__, reason_of(error))
        return []


def draw_training(record: Mapping[str, Any], files: Path) -> list[Path]:
    """Save the course of training as `<files>.training.png`, where it has one; a failure costs a warning."""
    if not record["config"].get("pictures", True) or len(record["evaluations"]) < 2:
        return []
    try:
        from fuxictr_llm.common.pictures import save_figures
        from fuxictr_llm.experiment.curves import training_curves

        return save_figures({"training": training_curves(record)}, files)
    except Exception as error:
        logging.warning("no curves of %s: %s: %s", files.name, type(error).__name__, reason_of(error))
        return []


def choose_model_id(experiment: Experiment, folder: Path) -> str:
    """The run's id, or a name with the config's digest where the expid's files belong to other settings."""
    if experiment.changed:
        return experiment.run_id
    files = run_files(folder, experiment.run_id)
    weights, record = Path(f"{files}.model"), read_json(f"{files}{RECORD}")
    if weights.exists() and (record or {}).get("config_sha256") != experiment.sha256:
        logging.warning("%s is of a run with other settings and is kept; this run is %s", weights, experiment.full_id)
        return experiment.full_id
    return experiment.run_id
