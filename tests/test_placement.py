"""Every backbone with every method runs on a GPU: nothing is left on the CPU, and no step of training waits for it.

No GPU is needed: see fake_gpu.py.
"""

import os
from concurrent.futures import ProcessPoolExecutor

import placement_cells
import pytest

from fuxictr_llm.common.processes import start_server
from fuxictr_llm.registry import own_backbone_names
from matrix_cells import PATHS
from support_process import run_code

pytestmark = pytest.mark.xdist_group("fake GPU")  # one process has it
# FuxiCTR's `get_inputs` and `get_labels` copy column by column, and wait. Training gives them columns that are on the
# device already; evaluation waits anyway, for the predictions of every batch, which FuxiCTR reads one by one.
COPIES_OF_COLUMNS = ("models/rank_model.py", "models/multitask_model.py", "SIM/SIM.py")
# With PLACEMENT=all in the environment, all methods, evaluation and serving are tried on every backbone.
ALL = "PLACEMENT" in os.environ
# The backbones on which they are tried always: one for each path of a method's code, a GRU, and tuples as batches.
EVERYTHING = (*PATHS, "DIEN", "SIM")
# A joint student does all that a staged one does, and trains its teacher.
METHODS = ("LLaCTR", "LLMEmb", "ELEC joint")
ENOUGH = ("LLaCTR",)  # for the code of a backbone
OF_SERVING = (*COPIES_OF_COLUMNS, "serving/load.py")  # the predictions are what was asked for


@pytest.fixture(scope="module")
def process():
    """A process with the device: torch does not forget it, and might choose it elsewhere."""
    with ProcessPoolExecutor(1, start_server([]), placement_cells.register) as pool:
        yield lambda function, *args: pool.submit(function, *args).result(timeout=300)


@pytest.mark.parametrize("backbone", [*own_backbone_names(), "SIM"])
def test_all_tensors_are_on_the_device_and_no_step_of_training_waits(process, backbone):
    everything = ALL or backbone in EVERYTHING
    methods = tuple(placement_cells.BUILDERS) if ALL else METHODS if everything else ENOUGH
    for name, waits in process(placement_cells.waits_of, backbone, methods, everything).items():
        expected = {"evaluation": COPIES_OF_COLUMNS, "served": OF_SERVING}.get(name.split(", ")[-1], ())
        assert [wait for wait in waits if not wait.partition(" in ")[2].startswith(expected)] == [], name


def test_a_step_with_regularizers_and_adam_does_not_wait(process):
    assert process(placement_cells.waits_of_a_whole_step) == {}


def test_the_process_comes_from_the_server_that_has_imported_everything(process):
    assert run_code("import sys; print('fuxictr_llm.experiment.run' in sys.modules)").stdout == "True\n"


@pytest.mark.parametrize("ask", placement_cells.ASKING)
def test_what_waits_is_noticed(process, ask):
    assert process(placement_cells.waits_for, ask)


def test_what_does_not_wait_is_not_noticed(process):
    assert process(placement_cells.waits_for, "not waiting") == {}
