"""Pictures show the right numbers at the right fields, and one that cannot be drawn loses no run."""

import json
import warnings
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg

from fuxictr_llm.common.pictures import Panel, heat_maps, save_figures, tuning_curves
from fuxictr_llm.common.run_files import run_files
from fuxictr_llm.config.resolve import load_experiment
from fuxictr_llm.enhancement.model import enhance
from fuxictr_llm.experiment.curves import training_curves
from fuxictr_llm.experiment.run import run_experiment
from fuxictr_llm.model_zoo.LLaCTR.pictures import cosines_of
from fuxictr_llm.model_zoo.LLaCTR.vector_file import read_field_vectors, read_untuned_vectors, write_field_vectors
from fuxictr_llm.registry import find_backbone, find_method
from support import build

FIELDS = ["user", "item", "price", "tags"]


def matrices(figure):
    return [
        np.ma.filled(axis.images[0].get_array(), np.nan) for axis in figure.axes if axis.images and axis.get_title()
    ]


def limits(figure):
    return [axis.images[0].get_clim() for axis in figure.axes if axis.images and axis.get_title()]


def symmetric(count, low, high, seed=0):
    matrix = np.random.default_rng(seed).uniform(low, high, (count, count))
    return (matrix + matrix.T) / 2


def off_diagonal(matrix):
    return matrix[~np.eye(len(matrix), dtype=bool)]


def test_heat_maps_show_the_matrices_without_their_diagonals_on_one_scale():
    before, after = symmetric(4, 0.7, 0.9), symmetric(4, 0.2, 0.6, seed=1)
    figure = heat_maps("t", [Panel("before", before, "cosine"), Panel("after", after, "cosine")], FIELDS)
    for shown, matrix in zip(matrices(figure), (before, after), strict=True):
        assert np.isnan(np.diag(shown)).all() and np.array_equal(off_diagonal(shown), off_diagonal(matrix))
    expected = (off_diagonal(after).min(), off_diagonal(before).max())
    assert limits(figure) == [pytest.approx(expected)] * 2
    left = figure.axes[0]
    assert [label.get_text() for label in left.get_xticklabels()] == FIELDS
    assert [label.get_text() for label in left.get_yticklabels()] == FIELDS
    assert {text.get_text() for text in left.texts} == {f"{value:.2f}" for value in off_diagonal(before)}


def test_scales_of_their_own_and_colours_around_zero():
    small, large = symmetric(4, 0.7, 0.9), symmetric(4, 5, 60)
    panels = [Panel("c", small, "cosine"), Panel("g", large, "weight", signed=True)]
    figure = heat_maps("t", panels, FIELDS, same_scale=False)
    highest = off_diagonal(large).max()
    assert limits(figure)[1] == pytest.approx((-highest, highest)) and limits(figure)[0][0] > 0.6
    assert sum(axis.get_ylabel() in ("cosine", "weight") for axis in figure.axes) == 2
    negative = heat_maps("t", [Panel("c", -small, "cosine")], FIELDS)
    assert limits(negative)[0] == pytest.approx((off_diagonal(-small).min(), -off_diagonal(-small).min()))


@pytest.mark.parametrize("matrix", [np.ones((1, 1)), np.eye(4), np.zeros((4, 4)), np.full((4, 4), -0.5)])
@pytest.mark.parametrize("signed", [True, False])
def test_matrices_without_differences_are_drawn(matrix, signed, tmp_path):
    figure = heat_maps("t", [Panel("c", matrix, "cosine", signed)], FIELDS[: len(matrix)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_figures({"a": figure}, tmp_path / "x")
    low, high = limits(figure)[0]
    assert low < high
    if len(matrix) == 1:
        assert matrices(figure)[0].tolist() == [[1.0]]


@pytest.mark.parametrize("count", [1, 2, 11, 40, 150])
def test_names_do_not_overlap(count):
    fields = [f"a_field_with_a_very_long_name_$x_{index}$" if index % 3 == 0 else f"C{index}" for index in range(count)]
    panels = [Panel("a", symmetric(count, 0, 1), "cosine"), Panel("b", symmetric(count, -1, 1), "cosine")]
    figure = heat_maps("A title", panels, fields)
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    axis = figure.axes[0]
    rows = [label.get_window_extent(renderer) for label in axis.get_yticklabels()]
    assert all(upper.y0 + 1 >= lower.y1 for upper, lower in pairwise(rows))
    columns = [label.get_window_extent(renderer) for label in axis.get_xticklabels()]
    assert all(left.x1 <= right.x0 + 1 for left, right in pairwise(columns))
    assert min(box.y0 for box in columns) > 0 and min(box.x0 for box in rows) > 0
    assert not figure._suptitle.get_window_extent(renderer).overlaps(axis.title.get_window_extent(renderer))
    texts = [label.get_text() for label in axis.get_yticklabels()]
    assert len(texts) <= 60
    assert max(map(len, texts)) <= 18
    assert len(set(texts)) == len(texts)
    assert len(axis.texts) == (count * (count - 1) if 1 < count <= 12 else count == 1)


def test_tuning_curves_show_every_point_and_what_was_before():
    losses, accuracies = [[10, 2.0], [20, 1.5]], [[0, 0.1], [10, 0.4], [20, 0.4], [30, 0.2]]
    top, below = tuning_curves("t", losses, accuracies, chance=0.25).axes
    assert top.lines[0].get_xydata().tolist() == losses
    assert below.lines[0].get_xydata().tolist() == accuracies
    labels = [text.get_text() for text in below.get_legend().get_texts()]
    assert labels == ["before 10%", "guessing 25%", "kept 40%"]
    assert below.lines[-1].get_xydata().tolist() == [[20, 0.4]]
    (only_loss,) = tuning_curves("t", losses, [], chance=0.25).axes
    assert only_loss.get_ylabel() == "loss"
    (only_accuracy,) = tuning_curves("t", [], accuracies[1:], chance=0.25).axes
    assert [text.get_text() for text in only_accuracy.get_legend().get_texts()] == ["guessing 25%", "kept 40%"]


def test_files_are_whole_or_not_there(tmp_path):
    class Broken:
        def savefig(self, path, **_):
            Path(path).write_bytes(b"half")
            raise OSError("disk full")

    figure = tuning_curves("t", [[1, 2.0]], [], chance=0.5)
    (path,) = save_figures({"ssft": figure}, tmp_path / "my.run")
    assert path.name == "my.run.ssft.png" and path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    before = path.read_bytes()
    with pytest.raises(OSError, match="disk full"):
        save_figures({"ssft": Broken()}, tmp_path / "my.run")
    assert path.read_bytes() == before and [file.name for file in tmp_path.iterdir() if "my.run" in file.name] == [
        path.name
    ]


def test_untuned_vectors_lie_beside_the_tuned_ones(tmp_path):
    tuned, untuned = torch.randn(4, 6), torch.randn(4, 6)
    write_field_vectors(tmp_path / "both.safetensors", tuned, FIELDS, untuned)
    write_field_vectors(tmp_path / "old.safetensors", tuned, FIELDS)
    np.save(tmp_path / "a.npy", tuned.numpy())
    assert torch.equal(read_field_vectors(tmp_path / "both.safetensors", FIELDS), tuned)
    assert torch.equal(read_untuned_vectors(tmp_path / "both.safetensors", ["tags", "user"]), untuned[[3, 0]])
    assert read_untuned_vectors(tmp_path / "old.safetensors", FIELDS) is None
    assert read_untuned_vectors(tmp_path / "a.npy", FIELDS) is None


def llactr(path, **changes):
    return build(
        enhance(find_backbone("FM"), find_method("LLaCTR").model_cls), "FM", field_vectors=str(path), **changes
    )


def test_llactr_draws_what_there_is(tmp_path):
    tuned, untuned = torch.randn(4, 6), torch.randn(4, 6)
    write_field_vectors(tmp_path / "both.safetensors", tuned, FIELDS, untuned)
    write_field_vectors(tmp_path / "old.safetensors", tuned, FIELDS)
    ssft = {"losses": [[10, 2.0]], "accuracies": [[0, 0.2], [10, 0.6]]}

    def pictures(name, notes, **changes):
        model = llactr(tmp_path / f"{name}.safetensors", **changes)
        run = SimpleNamespace(params={"field_vectors": str(tmp_path / f"{name}.safetensors")}, notes=notes)
        return model.enhancement, model.enhancement.pictures(run)

    method, figures = pictures("both", {"field_vectors": {"source": "llm", "ssft": ssft}})
    assert list(figures) == ["field_similarities", "ssft", "pair_weights"]
    for shown, vectors in zip(matrices(figures["field_similarities"]), (untuned, tuned), strict=True):
        assert np.array_equal(off_diagonal(shown), off_diagonal(cosines_of(vectors)).astype(float))
    cosines, weights = matrices(figures["pair_weights"])
    assert np.allclose(off_diagonal(cosines), off_diagonal(cosines_of(tuned)))
    assert np.allclose(off_diagonal(weights), off_diagonal(method.fie.pair_weights().detach().numpy()))
    _, figures = pictures("old", {"field_vectors": {"source": "random"}}, lambda_fie=0.0)
    assert list(figures) == ["field_similarities"] and len(matrices(figures["field_similarities"])) == 1
    assert figures["field_similarities"].axes[0].get_title() == "source: random"
    assert list(pictures("old", {}, fie_form="scalar")[1]) == ["field_similarities"]
    assert llactr("unread", lambda_fre=0.0, lambda_fie=0.0).enhancement.pictures(None) == {}


def test_a_run_leaves_its_pictures_and_the_key_switches_them_off(configs, tiny_settings):
    on = load_experiment("DeepFM_LLaCTR_shop", configs, overrides={**tiny_settings, "pictures": True})
    off = load_experiment("DeepFM_LLaCTR_shop", configs, overrides={**tiny_settings, "pictures": False})
    assert on.sha256 == off.sha256
    run_experiment(off)
    assert not list(Path().glob("checkpoints/shop/*/*.png"))
    model_id = run_experiment(on).record["model_id"]
    names = {path.name.removeprefix(model_id) for path in Path().glob("checkpoints/shop/*/*.png")}
    assert {".field_similarities.png", ".pair_weights.png"} <= names
    log = Path(f"checkpoints/shop/{model_id}/{model_id}.log").read_text()
    assert ".run.json, .field_similarities.png" in log
    done = json.loads(Path(f"checkpoints/shop/{model_id}/{model_id}.run.json").read_text())
    assert ".training.png" in names and len(done["evaluated_at"]) == len(done["evaluations"]) == 2
    assert done["evaluated_at"] == sorted(done["evaluated_at"])
    assert all(0 < one["method_loss"] < one["train_loss"] for one in done["evaluations"])


def test_a_picture_that_fails_is_a_warning(configs, tiny_settings, monkeypatch):
    def broken(*_):
        raise ValueError("no ink")

    monkeypatch.setattr(find_method("LLaCTR").model_cls, "pictures", broken)
    experiment = load_experiment("DeepFM_LLaCTR_shop", configs, overrides={**tiny_settings, "pictures": True})
    record = run_experiment(experiment).record
    run = run_files(Path("checkpoints/shop"), record["model_id"])
    assert json.loads(Path(f"{run}.run.json").read_text())["metrics"] == record["metrics"]
    assert f"no pictures of {run.name}: ValueError: no ink" in Path(f"{run}.log").read_text()


def test_curves_of_a_training_have_whole_epochs_and_mark_the_best():
    aucs = [0.7, 0.72, 0.71]
    done = [
        {"number": n, "train_loss": 0.6 / n, "metrics": {"AUC": auc}, "learning_rate": 1e-3, "method_loss": 0.1 / n}
        for n, auc in enumerate(aucs, 1)
    ]
    record = {
        "model_id": "FM_$x",
        "seed": 1,
        "evaluations": done,
        "best_epoch": 2,
        "config": {},
        "evaluated_at": [1, 2, 3],
    }
    figure = training_curves(record)
    loss, auc, term = figure.axes
    assert list(auc.lines[-1].get_ydata()) == aucs and list(term.lines[0].get_ydata()) == [
        0.1,
        0.05,
        pytest.approx(0.1 / 3),
    ]
    assert {axis.lines[0].get_xdata()[0] for axis in (loss, auc)} == {2}  # the mark
    figure.draw_without_rendering()
    assert all(float(tick).is_integer() for tick in auc.get_xticks()) and "1 s each" in auc.get_xlabel()
    done[1]["learning_rate"] = 1e-4
    start = {"number": 0, "train_loss": None, "metrics": {"AUC": 0.5}, "learning_rate": 1e-3}  # as of older versions
    several = training_curves({**record, "evaluations": [start, *done], "config": {"eval_steps": 5}})
    assert len(several.axes) == 4 and several.axes[1].get_xlim()[0] < 0
    assert "every 5 steps" in several.axes[2].get_xlabel()
