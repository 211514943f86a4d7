"""DIEN against Zhou et al., equations 2-12, written out step by step, and the auxiliary loss of equation 6."""

import pytest
import torch
from torch import sigmoid, tanh

from histories import NEGATIVES, embeddings_of, histories, others, pair_of, reader
from literal import assert_logit, mlp_literal


def gru(layer, state, step):
    """Equations 2-5; torch's GRU has the gates the other way round: `z` keeps the state."""
    of_step = (layer.weight_ih_l0 @ step + layer.bias_ih_l0).chunk(3)
    of_state = (layer.weight_hh_l0 @ state + layer.bias_hh_l0).chunk(3)
    r, z = sigmoid(of_step[0] + of_state[0]), sigmoid(of_step[1] + of_state[1])
    return (1 - z) * tanh(of_step[2] + r * of_state[2]) + z * state


def attentional(cell, state, step, weight, kind):
    """Equations 10 (AGRU) and 11-12 (AUGRU)."""
    u, r, n = (cell["x2h"].weight @ step + cell["x2h"].bias).chunk(3)
    u_h, r_h, n_h = (cell["h2h"].weight @ state + cell["h2h"].bias).chunk(3)
    update = weight if kind == "AGRU" else weight * sigmoid(u + u_h)
    return (1 - update) * state + update * tanh(n + sigmoid(r + r_h) * n_h)


def scores_of(layer, interests, target):
    """Equation 8, before the softmax."""
    if layer.attention_type == "bilinear_attention":
        return [state @ layer.W_kernel @ target for state in interests]
    return [state @ target for state in interests]


def interests_of(model, steps):
    states = [torch.zeros(8)]
    for step in steps:
        states.append(gru(model.extraction_modules[0], states[-1], step))
    return states[1:]


@pytest.mark.parametrize("kind", ["GRU", "AIGRU", "AGRU", "AUGRU"])
@pytest.mark.parametrize("padded", ["front", "behind"])
@pytest.mark.parametrize(
    "changes",
    [{}, {"attention_type": "dot_attention", "use_attention_softmax": False, "enable_sum_pooling": True}],
)
def test_the_logit_is_an_mlp_of_the_fields_and_the_interest_that_evolved(kind, padded, changes):
    model = reader("DIEN", gru_type=kind, **changes)
    batch = histories(model.feature_map, padded=padded)
    embeddings, rows = embeddings_of(model, batch), []
    for row in range(12):
        target, steps = pair_of(embeddings, batch, row)
        interests, state = interests_of(model, steps), torch.zeros(8)
        weights = [1.0] * len(steps) if kind == "GRU" else scores_of(model.attention_modules[0], interests, target)
        if kind != "GRU" and not changes:
            weights = [weight.exp() / sum(each.exp() for each in weights) for weight in weights]
        evolving = model.evolving_modules[0]
        for interest, weight in zip(interests, weights, strict=True):
            plain = kind in ("GRU", "AIGRU")
            state = (
                gru(evolving, state, weight * interest)
                if plain
                else attentional(evolving.gru_cell, state, interest, weight, kind)
            )
        pooled = sum(steps, torch.zeros(8))
        extra = [pooled, target * pooled] if changes else []
        rows.append(torch.cat([state, *extra, *others(embeddings, model.feature_map, row)]))
    assert_logit(model, batch, mlp_literal(model.dnn, torch.stack(rows)))


def test_an_interest_tells_the_next_item_from_another_one():
    model = reader("DIEN", negatives=True, aux_loss_alpha=0.5, aux_hidden_units=[6])
    batch = histories(model.feature_map, padded="behind")
    embeddings, terms = embeddings_of(model, batch), []
    for row in range(12):
        _, steps = pair_of(embeddings, batch, row)
        interests = interests_of(model, steps)
        for step in range(len(steps) - 1):
            other = torch.cat([embeddings[name][row, step + 1] for name in NEGATIVES])
            chances = [
                mlp_literal(model.aux_net, torch.cat([interests[step], item]).unsqueeze(0))
                for item in (steps[step + 1], other)
            ]
            terms.append(-torch.log(chances[0]) - torch.log(1 - chances[1]))
    output, label = model.forward(batch), model.get_labels(batch)
    loss = torch.nn.functional.binary_cross_entropy(output["y_pred"], label)
    torch.testing.assert_close(model.add_loss(output, label), loss + 0.5 * torch.cat(terms).mean())
