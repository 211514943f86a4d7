"""Columns that a method adds, on every backbone: the invariants of `fuxictr_llm/enhancement/model.py`, restated."""

import copy
import pickle

import pytest
import torch
from fuxictr.pytorch.models import BaseModel
from fuxictr.pytorch.torch_utils import seed_everything

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.diagnosis.doctor import method_check, run_check
from fuxictr_llm.diagnosis.tiny import tiny_case, train
from fuxictr_llm.distillation import Teacher
from fuxictr_llm.enhancement import AddedColumn, Enhancement, enhance
from fuxictr_llm.enhancement.columns import IdTables, added_name, encoder_parameters
from fuxictr_llm.enhancement.folded import StoredVectors
from fuxictr_llm.host import embeddings
from fuxictr_llm.host.batches import columns_of, with_columns
from fuxictr_llm.host.checkout import current_checkout
from fuxictr_llm.host.columns import with_more_features
from fuxictr_llm.host.embeddings import VECTOR_SCALE
from fuxictr_llm.registry import find_backbone, find_method, own_backbone_names
from fuxictr_llm.serving.load import build_backbone
from fuxictr_llm.training import build as training
from matrix_cells import PATHS, predictions
from support import build, params, small_feature_map

WIDTH, COLUMN = 3, added_name("user_id")
TABLE = torch.randn(14, WIDTH, generator=torch.Generator().manual_seed(0))
WHEEL = "SIM"  # one of the models that the fuxictr wheel installs, all of which take tuples as batches

pytestmark = pytest.mark.zoo


class Given(Enhancement):
    """A column of vectors by the user's id, times a trained vector that starts at one."""

    method_name = "Given"
    reads_embeddings = False

    def __init__(self, config, anatomy):
        super().__init__(config, anatomy)
        self.tables = IdTables({"user_id": TABLE.clone()})
        self.scale = torch.nn.Parameter(torch.ones(WIDTH))

    @classmethod
    def columns(cls, config, feature_map):
        return {COLUMN: AddedColumn(WIDTH)}

    def trained_parameters(self):
        return [self.scale]

    def inputs(self, inputs):
        return {COLUMN: self.scale * self.tables(columns_of(inputs))["user_id"]}


class Frozen(Given):
    """The same, without what is trained."""

    def trained_parameters(self):
        return []

    def inputs(self, inputs):
        return {COLUMN: self.tables(columns_of(inputs))["user_id"]}


def pytest_generate_tests(metafunc):
    if "backbone" in metafunc.fixturenames and "method" not in metafunc.fixturenames:
        checkout = current_checkout()
        metafunc.parametrize("backbone", checkout.names() if checkout else [*own_backbone_names(), WHEEL])


def test_every_backbone_reads_them_as_its_own(backbone):
    try:
        case = tiny_case(find_backbone(backbone))
    except UserError as error:
        assert current_checkout(), error
        pytest.skip(str(error))
    steps = case.batches(rows=80, batch_size=32)
    given = [with_columns(batch, {COLUMN: TABLE[columns_of(batch)["user_id"]]}) for batch in steps]
    # 1. With the same vectors in its batches, the plain class trains bit-identically.
    feature_map = with_more_features(case.feature_map, {COLUMN: AddedColumn(WIDTH).spec})
    plain, frozen = training.build(case.cls, feature_map, {**case.settings, "seed": 1}), case.enhanced(Frozen)
    assert_equal_states(plain.state_dict(), frozen.backbone_state_dict())
    assert train(plain, given) == train(frozen, steps)
    assert_equal_states(plain.state_dict(), frozen.backbone_state_dict())
    assert torch.equal(predictions(plain, given), predictions(frozen, steps))
    # 2. Every parameter moves: the method's, and the layers that read the column.
    model = case.enhanced(Given)
    before = [weight.detach().clone() for weight in moving(model)]
    train(model, steps)
    assert len(before) > 1 and not any(map(torch.equal, moving(model), before))
    # 3. The backbone's part loads strictly into the class built on the model's feature map.
    build_backbone(case.cls, model.feature_map, case.settings).load_state_dict(model.backbone_state_dict(), strict=True)
    # 4. Copies predict the same, and never drive their original.
    expected = predictions(model, steps)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(predictions(twin, steps), expected)
        train(twin, steps[:1])
        assert torch.equal(predictions(model, steps), expected)
    # The data set's feature map stays as it is.
    assert COLUMN not in case.feature_map.features and COLUMN in model.feature_map.features


@pytest.mark.parametrize("method", ["LLMFeature", "KAR", "CTRL"])
@pytest.mark.parametrize("backbone", PATHS)
def test_our_methods_train_on_every_kind_of_backbone(backbone, method):
    finding = run_check(method_check(find_method(method).model_cls), tiny_case(find_backbone(backbone)))
    if (backbone, method) == ("LR", "CTRL"):
        assert finding.text.startswith("CTRL needs a representation, and LR shows none")
    else:
        assert finding.outcome == "passed", finding.text


def test_a_teacher_that_gives_itself_columns_needs_no_others():
    case = tiny_case(find_backbone("DeepFM"))
    teacher, (batch, *_) = Teacher(case.enhanced(Given)), case.batches()
    assert teacher(batch).logit.shape == (64, 1)
    batch.pop("user_id")
    with pytest.raises(UserError, match="the batch lacks column 'user_id', which the teacher DeepFM_Given reads"):
        teacher(batch)


def moving(model):
    return [model.enhancement.scale, *encoder_parameters(model)]


def assert_equal_states(some, others):
    assert some.keys() == others.keys()
    assert [key for key, value in some.items() if not torch.equal(value, others[key])] == []


def test_a_linear_part_gets_weights_and_all_else_stays_as_it_is(monkeypatch):
    more = with_more_features(small_feature_map("DeepFM"), {"v": AddedColumn(5).spec})
    model, random_numbers = deepfm_on(more), torch.get_rng_state()
    name = "fm.lr_layer.embedding_layer.embedding_layer.feature_encoders.v.weight"
    weight = dict(model.named_parameters())[name]
    assert weight.shape == (1, 5) and 0.2 < weight.std() / VECTOR_SCALE < 3
    assert any(weight is each for group in model.optimizer.param_groups for each in group["params"])
    monkeypatch.setattr(embeddings, "give_projections", lambda model: None)
    without = deepfm_on(more).state_dict()
    assert_equal_states({key: value for key, value in model.state_dict().items() if key != name}, without)
    assert torch.equal(torch.get_rng_state(), random_numbers)


def deepfm_on(feature_map):
    seed_everything(1)
    return find_backbone("DeepFM")(feature_map, **params("DeepFM"))


def test_a_column_of_that_name_is_refused():
    class Taken(Given):
        @classmethod
        def columns(cls, config, feature_map):
            return {"user": AddedColumn(WIDTH)}

    with pytest.raises(UserError, match="method Given adds the column 'user', and data set 'small' has one of that"):
        build(enhance(find_backbone("DeepFM"), Taken))


class Picky(BaseModel):
    """Reads ids and numbers alone."""

    def __init__(self, feature_map, learning_rate=1e-3, **params):
        super().__init__(feature_map, **params)
        self.fc = torch.nn.Linear(len(self.ids(feature_map)), 1)
        self.compile(params["optimizer"], params["loss"], learning_rate)

    @staticmethod
    def ids(feature_map):
        known = ("categorical", "sequence", "numeric", "meta")
        assert all(spec["type"] in known for spec in feature_map.features.values()), "no vectors, please"
        return [name for name, spec in feature_map.features.items() if spec["type"] == "categorical"]

    def forward(self, inputs):
        columns = self.get_inputs(inputs)
        ids = torch.stack([columns[name].float() for name in self.ids(self.feature_map)], dim=1)
        return {"y_pred": self.output_activation(self.fc(ids))}


def test_a_backbone_that_reads_no_vectors_is_named_with_the_way_out():
    message = (
        f"Picky cannot read the vectors of column '{COLUMN}', which method Given adds \\(no vectors, please\\); take "
        "another backbone, as DeepFM or DCNv2, or a method that adds no column"
    )
    with pytest.raises(UserError, match=message):
        build(enhance(Picky, Given))


def test_stored_vectors_by_id_and_zeros_for_ids_beyond_them():
    table = torch.arange(12.0).view(4, 3)
    table[0] = 0
    model = build(enhance(find_backbone("DeepFM"), StoredVectors), stored={"user": [4, 3]})
    model.enhancement.vectors.of_user.copy_(table)
    batch = {"user": torch.tensor([3, 0, 9])}
    read = model.enhancement.inputs(batch)["llm_vector_user"]
    assert torch.equal(read, torch.stack([table[3], torch.zeros(3), torch.zeros(3)]))
