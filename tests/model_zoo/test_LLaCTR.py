"""FRE and FIE against literal versions of the equations, and LLaCTR on every backbone."""

import math

import pytest
import torch

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.config.resolve import load_experiment
from fuxictr_llm.enhancement.anatomy import Anatomy
from fuxictr_llm.enhancement.model import enhance
from fuxictr_llm.leaderboard.plan.arms import run_key
from fuxictr_llm.model_zoo.LLaCTR.config import LLaCTRConfig
from fuxictr_llm.model_zoo.LLaCTR.model import FeatureInteractionEnhancement, FeatureRepresentationEnhancement
from fuxictr_llm.model_zoo.LLaCTR.vector_file import write_field_vectors
from fuxictr_llm.registry import find_backbone, find_method
from support import BACKBONES, SETTINGS, batches, build, train

FIELDS = ["user", "item", "price", "tags", "image"]
BOUNDS = {"full": None, "diagonal": None, "bounded": 0.8}
every_map = pytest.mark.parametrize("fie_map", BOUNDS)
every_backbone = pytest.mark.parametrize("name", BACKBONES)


@pytest.fixture
def vector_file(tmp_path):
    """Writes a random vector for each field of a backbone's feature map."""

    def write(name):
        fields = FIELDS[:-1] if name in ("DeepFM", "FM", "FmFM") else FIELDS
        path = tmp_path / f"{name}.safetensors"
        write_field_vectors(path, torch.randn(len(fields), 9, generator=torch.Generator().manual_seed(3)), fields)
        return str(path)

    return write


def llactr(name, vectors, **changes):
    cls = enhance(find_backbone(name), find_method("LLaCTR").model_cls)
    return build(cls, name, field_vectors=vectors, **changes)


def literal_fre(W, b, H, e):
    """The sum over rows, fields and dims, written out."""
    B, K, D = e.shape
    total = 0.0
    for row in range(B):
        for k in range(K):
            z = [sum(W[d][m] * H[k][m] for m in range(H.shape[1])) + b[d] for d in range(D)]
            p = [math.exp(v) / sum(math.exp(u) for u in z) for v in z]
            q = [math.exp(v) / sum(math.exp(u) for u in e[row, k]) for v in e[row, k]]
            total += sum(p[d] * math.log(p[d] / q[d]) for d in range(D))
    return total / B


def literal_fie(fie_map, A, a, H, e):
    """g = A c + a over i < j, bounded or not, then the weighted inner products of every row."""
    K = len(H)
    pairs = [(i, j) for i in range(K) for j in range(i + 1, K)]
    c = [float(torch.dot(H[i], H[j]) / (H[i].norm() * H[j].norm())) for i, j in pairs]
    g = [sum(A[p][q] * c[q] for q in range(len(pairs))) + a[p] for p in range(len(pairs))]
    if fie_map == "bounded":
        g = [c[p] + 0.8 * math.tanh((g[p] - c[p]) / 0.8) for p in range(len(pairs))]
    return [sum(g[p] * float(torch.dot(row[i], row[j])) for p, (i, j) in enumerate(pairs)) for row in e]


def test_fre_equals_the_literal_equation():
    torch.manual_seed(0)
    H, e = torch.randn(5, 7), torch.randn(3, 5, 4)
    fre = FeatureRepresentationEnhancement(H, 4)
    expected = literal_fre(fre.projection.weight.detach(), fre.projection.bias.detach(), H, e)
    assert fre(e).item() == pytest.approx(expected, abs=1e-5)


def test_fre_is_zero_when_embeddings_agree_with_the_projection():
    H = torch.randn(3, 5)
    fre = FeatureRepresentationEnhancement(H, 4)
    assert fre(fre.projection(H).expand(6, -1, -1)).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("tasks", [1, 3])
@pytest.mark.parametrize("form", ["pairwise", "scalar"])
@every_map
def test_fie_and_what_serving_has_of_it_equal_the_literal_equation(fie_map, form, tasks):
    torch.manual_seed(0)
    H, e = torch.randn(5, 7), torch.randn(3, 5, 4)
    fie = FeatureInteractionEnhancement(H, fie_map, form, tasks=tasks, bound=BOUNDS[fie_map])
    with torch.no_grad():
        fie.map.copy_(torch.randn_like(fie.map))
        fie.bias.copy_(torch.randn_like(fie.bias))
    maps, biases = fie.map.detach() if tasks > 1 else fie.map.detach().unsqueeze(0), fie.bias.detach()
    maps = torch.diag_embed(maps) if fie_map == "diagonal" else maps
    # Where every pair's inner product is 1, the sum is that of the weights alone.
    shown = e if form == "pairwise" else torch.eye(4)[0].expand(3, 5, 4)
    literal = [literal_fie(fie_map, A, a, H, shown) for A, a in zip(maps, biases.view(tasks, -1), strict=True)]
    expected = torch.tensor(literal).T
    assert torch.allclose(fie(e), expected, atol=1e-4)
    fie.eval()
    with torch.no_grad():
        assert torch.allclose(fie(e), expected, atol=1e-4)
    anatomy = Anatomy("FM", tuple("abc"[:tasks]), (), (), tuple("fghij"), (4,) * 5, {}, None, None, ())
    config = LLaCTRConfig(lambda_fie=0.5, fie_map=fie_map, fie_form=form, fie_bound=0.8)
    state = {f"fie.{name}": value for name, value in fie.state_dict().items()}
    folded = find_method("LLaCTR").model_cls.fold(config, anatomy, state)
    assert torch.allclose(folded.logit(e, None).expand(3, tasks), 0.5 * expected, atol=1e-4)


@every_map
def test_fie_starts_from_the_cosines(fie_map):
    H = torch.randn(4, 6)
    fie = FeatureInteractionEnhancement(H, fie_map, bound=BOUNDS[fie_map])
    expected = torch.nn.functional.cosine_similarity(H.unsqueeze(0), H.unsqueeze(1), dim=-1)
    assert torch.allclose(fie.pair_weights(), expected.fill_diagonal_(0), atol=1e-6)


@every_map
@pytest.mark.parametrize("tasks", [1, 2])
def test_no_gradient_pushes_bounded_weights_further_from_the_cosines_than_the_bound(fie_map, tasks):
    torch.manual_seed(0)
    fie = FeatureInteractionEnhancement(torch.randn(5, 7), fie_map, tasks=tasks, bound=BOUNDS[fie_map])
    optimizer = torch.optim.SGD(fie.parameters(), lr=1e6)
    start, e = fie.pair_weights().detach(), torch.randn(8, 5, 4)
    for _ in range(3):
        optimizer.zero_grad()
        (-1e3 * fie(e).sum()).backward()
        optimizer.step()
    moved = (fie.pair_weights() - start).detach().abs()
    assert torch.isfinite(moved).all() and moved.sum() > 1
    assert (moved.max() <= 0.8 + 1e-6) == (fie_map == "bounded")


@every_map
@pytest.mark.parametrize("init", ["identity", "random"])
def test_gradients_reach_every_weight_of_the_map(fie_map, init):
    torch.manual_seed(0)
    fie = FeatureInteractionEnhancement(torch.randn(5, 7), fie_map, init=init, tasks=2, bound=BOUNDS[fie_map])
    (fie(torch.randn(8, 5, 4)) * torch.tensor([1.0, -2.0])).sum().backward()
    for parameter in fie.parameters():
        assert parameter.grad.abs().min() > 0


def test_near_the_cosines_a_bound_changes_nothing():
    torch.manual_seed(0)
    H = torch.randn(5, 7)
    bounded, full = (FeatureInteractionEnhancement(H, "full", bound=bound) for bound in (3.0, None))
    with torch.no_grad():
        full.map.add_(0.01 * torch.randn(10, 10))
        full.bias.add_(0.01 * torch.randn(10))
    bounded.load_state_dict(full.state_dict())
    torch.testing.assert_close(bounded.pair_weights(), full.pair_weights(), rtol=0, atol=1e-4)


def test_the_fold_follows_training_and_loading():
    fie, other, e = FeatureInteractionEnhancement(torch.randn(4, 6), "full"), None, torch.randn(2, 4, 3)
    other = FeatureInteractionEnhancement(torch.randn(4, 6), "full").eval()
    with torch.no_grad():
        fie.map.mul_(3)
    fie.eval()
    other.load_state_dict(fie.state_dict())
    with torch.no_grad():
        assert torch.equal(fie(e), other(e))
    assert torch.allclose(fie.folded, fie.pair_weights())


def test_a_full_map_over_many_fields_is_refused_with_its_size():
    for fie_map in ("full", "bounded"):
        problem = rf"fie_map '{fie_map}' over 65 fields would have 4,326,400 weights .* fie_map: diagonal"
        with pytest.raises(UserError, match=problem):
            FeatureInteractionEnhancement(torch.randn(65, 3), fie_map)
    assert FeatureInteractionEnhancement(torch.randn(65, 3), "diagonal").map.numel() == 2080


@every_backbone
def test_one_lambda_zero_leaves_the_other_term_alone(name, vector_file):
    fre_only = llactr(name, vector_file(name), lambda_fie=0.0)
    assert set(dict(fre_only.enhancement.named_parameters())) == {"fre.projection.weight", "fre.projection.bias"}
    fie_only, steps = llactr(name, vector_file(name), lambda_fre=0.0), batches(name, 1)
    plain = build(name, name)
    for model in (fre_only, fie_only, plain):
        model.eval()
    with torch.no_grad():
        expected = plain.forward(steps[0])["y_pred"]
        assert torch.equal(fre_only.forward(steps[0])["y_pred"], expected)
        assert not torch.equal(fie_only.forward(steps[0])["y_pred"], expected)


def test_the_terms_enter_loss_and_logit_with_their_lambdas(vector_file):
    model, plain = llactr("FM", vector_file("FM"), lambda_fre=0.3, lambda_fie=0.2), build("FM", "FM")
    batch = batches("FM", 1)[0]
    return_dict = model.forward(batch)
    e = return_dict["trace"].embeddings
    logit = torch.logit(plain.forward(batch)["y_pred"]) + 0.2 * model.enhancement.fie(e)
    assert torch.allclose(torch.logit(return_dict["y_pred"]), logit, atol=1e-4)
    y = model.get_labels(batch)
    bce = torch.nn.functional.binary_cross_entropy(return_dict["y_pred"], y)
    assert model.add_loss(return_dict, y).item() == pytest.approx(
        (bce + 0.3 * model.enhancement.fre(e)).item(), abs=1e-5
    )


def test_inference_is_the_same_with_and_without_the_fold(vector_file):
    model, steps = llactr("DeepFM", vector_file("DeepFM")), batches()
    train(model, steps)
    model.eval()
    live = model.forward(steps[0])["y_pred"]
    with torch.no_grad():
        assert torch.allclose(model.forward(steps[0])["y_pred"], live, atol=1e-6)


def test_a_single_field_has_no_pairs(tmp_path):
    from support import params, small_feature_map

    feature_map = small_feature_map("DNN")
    for name in FIELDS[1:]:
        del feature_map.features[name]
    feature_map.num_fields = 1
    write_field_vectors(tmp_path / "one.safetensors", torch.randn(1, 9), ["user"])
    cls = enhance(find_backbone("DNN"), find_method("LLaCTR").model_cls)
    model = cls(feature_map, **params("DNN", field_vectors=str(tmp_path / "one.safetensors")))
    assert model.enhancement.fie is None
    batch = {name: batches("DNN", 1)[0][name] for name in ("user", "group", "click")}
    assert torch.isfinite(torch.tensor(train(model, [batch])))


def test_vectors_of_other_fields_and_missing_files_are_named(vector_file, tmp_path):
    with pytest.raises(UserError, match=r"missing \['image'\], unexpected none"):
        llactr("DNN", vector_file("FM"))
    llactr("FM", vector_file("DNN"))  # a backbone may leave a field of the data set out
    with pytest.raises(UserError, match="is not a file; give one, or let"):
        llactr("DNN", str(tmp_path / "absent.safetensors"))
    (tmp_path / "garbage.safetensors").write_bytes(b"garbage")
    with pytest.raises(UserError, match="is no file of field vectors"):
        llactr("DNN", str(tmp_path / "garbage.safetensors"))


def test_vectors_follow_the_fields_by_name_not_by_order(tmp_path, vector_file):
    torch.manual_seed(0)
    H = torch.randn(4, 9)
    names = FIELDS[:4]
    write_field_vectors(tmp_path / "a.safetensors", H, names)
    write_field_vectors(tmp_path / "b.safetensors", H.flip(0), names[::-1])
    a, b = (llactr("FM", str(tmp_path / f"{file}.safetensors")) for file in "ab")
    assert torch.equal(a.enhancement.fre.field_vectors, b.enhancement.fre.field_vectors)


@pytest.mark.parametrize(
    ("key", "value"),
    [("lambda_fre", -1.0), ("lambda_fie", "x"), ("fie_map", "dense"), ("variant", "Corrected"), ("fie_form", "pairs")]
    + [("fie_bound", bound) for bound in (0, -1.0, math.inf, math.nan, "3")],
)
def test_wrong_settings_name_key_and_value(key, value):
    with pytest.raises(UserError, match=f"config key '{key}' is {value!r}"):
        llactr("FM", "unread", **{key: value})


def test_defaults_are_the_documented_ones():
    config = LLaCTRConfig()
    assert (config.lambda_fre, config.lambda_fie, config.variant) == (0.05, 0.1, "corrected")
    maps = [config.for_backbone("FM"), LLaCTRConfig(variant="reference").for_backbone("FM")]
    maps += [LLaCTRConfig(fie_map="full").for_backbone("FM")]
    assert [one.fie_map for one in maps] == ["bounded", "full", "full"]


def test_the_map_and_its_bound_are_part_of_a_runs_identity(configs):
    settings = [{"fie_map": name} for name in (None, "full", "diagonal")] + [{"fie_bound": 2.0}]
    runs = [load_experiment("FM_LLaCTR_shop", configs, overrides=changes) for changes in settings]
    assert len({run_key(run.params) for run in runs}) == len({run.full_id for run in runs}) == 4


def literal_reference_step(model, W, b, A, a, H, batch, optimizer, lambda_fre, lambda_fie, max_norm):
    """A training step as the published code takes it: W, b, A, a in no optimizer, their gradients never cleared."""
    optimizer.zero_grad()
    seen = {}
    hook = model.embedding_layer.register_forward_hook(lambda _, __, output: seen.update(e=output))
    logit_hook = model.output_activation.register_forward_pre_hook(lambda _, args: seen.update(logit=args[0]))
    model.forward(batch)
    hook.remove()
    logit_hook.remove()
    e = seen["e"]
    e = e if e.dim() == 3 else e.unflatten(-1, (len(H), -1))
    normed = H / H.norm(dim=-1, keepdim=True)
    mask = torch.triu(torch.ones(len(H), len(H)), diagonal=1).bool()
    g = A @ (normed @ normed.T)[mask] + a
    if type(model).__name__ in ("FinalMLP", "WuKong"):
        fie = g.sum()
    else:
        fie = (torch.bmm(e, e.transpose(1, 2))[:, mask] * g).sum(dim=-1, keepdim=True)
    y_pred = torch.sigmoid(seen["logit"] + lambda_fie * fie)
    target = torch.softmax(H @ W.T + b, dim=-1)
    fre = torch.nn.functional.kl_div(torch.log(torch.softmax(e, dim=-1)), target.expand_as(e), reduction="batchmean")
    y = batch["click"].float().view(-1, 1)
    loss = torch.nn.functional.binary_cross_entropy(y_pred, y) + lambda_fre * fre + model.regularization_loss()
    loss.backward()
    torch.nn.utils.clip_grad_norm_([*model.parameters(), W, b, A, a], max_norm)
    optimizer.step()
    return loss.item()


@pytest.mark.parametrize("name", ["FM", "DeepFM", "FinalMLP", "WuKong"])
def test_the_reference_variant_trains_as_a_literal_version(name, vector_file):
    H = torch.randn(4 if name in ("DeepFM", "FM") else 5, 9, generator=torch.Generator().manual_seed(3))
    # No norms: what they cancel has gradients of rounding errors alone, whose sign Adam turns into full steps.
    off = {key: 0.0 for key in SETTINGS[name] if key.endswith("dropout")}
    off |= dict.fromkeys(("batch_norm", "mlp1_batch_norm", "mlp2_batch_norm", "mlp_batch_norm", "layer_norm"), False)
    model = llactr(
        name, vector_file(name), variant="reference", lambda_fre=0.3, lambda_fie=0.5, weight_decay=0.01, **off
    )
    literal = build(name, name, **off)
    fre, fie = model.enhancement.fre.projection, model.enhancement.fie
    copies = [p.detach().clone().requires_grad_() for p in (fre.weight, fre.bias, fie.map, fie.bias)]
    optimizer = torch.optim.Adam(literal.parameters(), lr=0.05, weight_decay=0.01)
    steps = batches(name)
    losses = train(model, steps)
    literal.train()
    expected = [literal_reference_step(literal, *copies, H, step, optimizer, 0.3, 0.5, 0.5) for step in steps]
    assert losses == pytest.approx(expected, abs=2e-5)
    for key, value in literal.state_dict().items():
        assert torch.allclose(value, model.state_dict()[key], atol=2e-4), key
    for parameter, copy in zip((fre.weight, fre.bias, fie.map, fie.bias), copies, strict=True):
        assert torch.equal(parameter, copy)  # never trained
        assert torch.allclose(parameter.grad, copy.grad, atol=1e-4)  # and never cleared


def test_each_piece_of_the_reference_variant_can_be_switched_alone(vector_file):
    def pieces(name, **changes):
        model = llactr(name, vector_file(name), **changes)
        fie = model.enhancement.fie
        optimized = {id(p) for group in model.optimizer.param_groups for p in group["params"]}
        started_as_identity = torch.equal(fie.map, torch.eye(len(fie.map)))
        return id(fie.map) in optimized, fie.form, started_as_identity

    assert pieces("WuKong") == (True, "pairwise", True)
    assert pieces("WuKong", variant="reference") == (False, "scalar", False)
    assert pieces("FM", variant="reference") == (False, "pairwise", False)
    assert pieces("WuKong", variant="reference", train_maps=True) == (True, "scalar", False)
    assert pieces("WuKong", variant="reference", fie_form="pairwise") == (False, "pairwise", False)
    assert pieces("WuKong", variant="reference", fie_init="identity") == (False, "scalar", True)
    assert pieces("FM", fie_form="scalar") == (True, "scalar", True)


def test_a_scalar_fie_shifts_every_logit_alike(vector_file):
    model, plain, batch = llactr("FM", vector_file("FM"), fie_form="scalar"), build("FM", "FM"), batches("FM", 1)[0]
    for m in (model, plain):
        m.eval()
    with torch.no_grad():
        shift = torch.logit(model.forward(batch)["y_pred"]) - torch.logit(plain.forward(batch)["y_pred"])
    expected = 0.1 * model.enhancement.fie.folded.triu().sum()
    assert torch.allclose(shift, expected.expand_as(shift), atol=1e-4) and expected.abs() > 1e-3


def test_an_optimizer_without_weight_decay_says_so(vector_file):
    with pytest.raises(UserError, match="optimizer LBFGS has no weight_decay"):
        llactr("FM", vector_file("FM"), weight_decay=0.1, optimizer="LBFGS")
