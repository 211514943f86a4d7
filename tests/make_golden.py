"""Record what FuxiCTR's own classes compute: `python tests/make_golden.py ~/FuxiCTR`, see golden/README.md."""

import argparse
import importlib.metadata
import json
import subprocess
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from fuxictr.pytorch.models import BaseModel
from torch import Tensor

from fuxictr_llm.diagnosis.tiny import active_regularization, constructor_defaults, tiny_case, tiny_feature_map_for
from fuxictr_llm.host.checkout import current_checkout, use_checkout
from fuxictr_llm.host.columns import describe_feature_map
from fuxictr_llm.host.embeddings import initialize_skipped
from fuxictr_llm.registry import own_backbone_names
from histories import padded_behind
from support_golden import ARRAYS, DESCRIPTION, build, in_batches, observe, summaries

FIELDS_APART = {
    "target": ["item_id", "cate_id"],
    "sequence": ["click_history", "cate_history"],
}
TOWERS = {"gate_hidden_units": [], "expert_hidden_units": [6, 5], "tower_hidden_units": [4]}
# Each class is recorded with its defaults (but small, and with BatchNorm and regularizers), and with each of these.
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "AFM": [{"use_attention": False}],
    "AFN": [{"ensemble_dnn": False}],
    "AutoInt": [
        {"use_wide": True, "layer_norm": True, "use_scale": True, "num_heads": 2},
        {"dnn_hidden_units": [], "use_residual": False},
    ],
    "BST": [
        {"seq_pooling_type": "sum", "use_causal_mask": True},
        {"seq_pooling_type": "target", "use_position_emb": False, "stacked_transformer_layers": 2},
        {"seq_pooling_type": "concat", "layer_norm": False, "use_residual": False},
        {"bst_target_field": FIELDS_APART["target"], "bst_sequence_field": FIELDS_APART["sequence"]},
    ],
    "DCN": [{"dnn_hidden_units": []}],
    "DCNv2": [
        {"model_structure": "crossnet_only", "use_low_rank_mixture": True, "low_rank": 3},
        {"model_structure": "stacked"},
        {"model_structure": "stacked_parallel"},
    ],
    "DIEN": [
        {"gru_type": "GRU", "enable_sum_pooling": True},
        {"gru_type": "AGRU", "attention_type": "dot_attention", "use_attention_softmax": False},
        {"attention_type": "din_attention"},
        {"dien_target_field": FIELDS_APART["target"], "dien_sequence_field": FIELDS_APART["sequence"]},
    ],
    "DIN": [
        {"din_use_softmax": True},
        {"din_target_field": FIELDS_APART["target"], "din_sequence_field": FIELDS_APART["sequence"]},
    ],
    "DLRM": [{"interaction_op": "cat"}],
    "EDCN": [
        {"bridge_type": bridge, "temperature": 0.5}
        for bridge in ("pointwise_addition", "concatenation", "attention_pooling")
    ],
    "EulerNet": [{"layer_norm": True, "shape": [3, 3, 2]}],
    "FFM": [{"embedding_dim": 3}],
    "FiBiNET": [
        {"bilinear_type": "field_all", "excitation_activation": "sigmoid"},
        {"bilinear_type": "field_each", "reduction_ratio": 2},
    ],
    "FinalMLP": [
        {"use_fs": False, "num_heads": 2},
        {"fs1_context": ["user_id"], "fs2_context": ["item_id", "cate_id"]},
    ],
    "FinalNet": [
        {"block_type": "1B", "residual_type": "sum", "block1_hidden_activations": "relu"},
        {"use_feature_gating": True},
    ],
    "FmFM": [{"field_interaction_type": "vectorized"}],
    "FwFM": [{"linear_type": "LW"}, {"linear_type": "FeLV"}],
    "HOFM": [{"order": 4, "embedding_dim": [4, 3, 2]}, {"order": 2, "reuse_embedding": True}],
    "MMoE": [{"num_tasks": 1, **TOWERS}],
    "MaskNet": [
        {"model_type": "ParallelMaskNet", "parallel_num_blocks": 2, "parallel_block_dim": 5},
        {"emb_layernorm": False, "net_layernorm": False, "reduction_ratio": 0.5},
    ],
    "PLE": [{"num_tasks": 1, **TOWERS}, {"num_layers": 2, "num_shared_experts": 2, "num_specific_experts": 2}],
    "ShareBottom": [{"num_tasks": 1}],
    "TransAct": [
        {"first_k_cols": 2, "concat_max_pool": False, "transformer_layers": 2},
        {"target_item_field": FIELDS_APART["target"], "sequence_item_field": FIELDS_APART["sequence"]},
    ],
    "WuKong": [{"layer_norm": False, "mlp_batch_norm": False, "num_wukong_layers": 1}],
    "xDeepFM": [{"dnn_hidden_units": []}],
}
STRONG = 0.1  # of a regularizer: enough to be seen in three steps
# Adam makes steps of gradients that are nothing but rounding.
TRAINED_BY = {"optimizer": "SGD", "learning_rate": 0.02}
# What a class needs beside: layers narrow enough for a small file.
NEEDED: dict[str, dict[str, Any]] = {
    "WuKong": {"lcb_features": 3, "fmb_features": 4},
}
# What a class of FuxiCTR reads as its authors meant in one form of the data alone; ours reads it in each.
FORMS = {
    "DIEN": ("histories padded behind", padded_behind),
    "DLRM": ("numeric columns as float32 [B, 1]", lambda batch: numbers_in_columns(batch)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkout", help="a FuxiCTR checkout")
    parser.add_argument("--commit", help="its commit, where the folder is no git repository")
    arguments = parser.parse_args()
    use_checkout(arguments.checkout)
    torch.set_num_threads(1)
    stored: dict[str, np.ndarray] = {}
    described: dict[str, Any] = {"fuxictr": versions(arguments), "feature_maps": {}, "classes": {}, "cases": {}}
    for name in own_backbone_names():
        model = current_checkout().find(name)
        if model is None:
            continue
        cls = current_checkout().load(model)
        described["classes"][name] = {
            "file": model.file.relative_to(current_checkout().folder).as_posix(),
            "defaults": defaults_of(cls),
        }
        for changes in [{}, *VARIANTS.get(name, [])]:
            case_id = "-".join([name, *(f"{key}={value}" for key, value in changes.items())]).replace("/", "_")
            print(case_id, flush=True)
            record(case_id, cls, changes, described, stored)
    DESCRIPTION.parent.mkdir(exist_ok=True)
    DESCRIPTION.write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
    np.savez_compressed(ARRAYS, **stored)


def record(
    case_id: str,
    cls: type[BaseModel],
    changes: dict[str, Any],
    described: dict[str, Any],
    stored: dict[str, np.ndarray],
) -> None:
    """Add a case to what is described and stored."""
    active = active_regularization(cls)
    active |= {key: STRONG for key in active if key.endswith("regularizer")}
    active.pop("net_dropout", None)  # another machine may draw other numbers
    case = tiny_case(cls, **(TRAINED_BY | active | NEEDED.get(cls.__name__, {}) | changes))
    if cls.__name__ == "DLRM":  # it takes numeric columns, in a form that tiny_case does not try
        case = replace(case, feature_map=tiny_feature_map_for(cls, case.settings), left_out={})
    form, change = FORMS.get(cls.__name__, ("", lambda batch: batch))
    feature_map = describe_feature_map(case.feature_map)
    map_id = name_of(feature_map, form, described["feature_maps"])
    columns = joined([change(batch) for batch in case.batches()])
    settings = {key: value for key, value in case.settings.items() if key != "num_threads"}
    model = build(cls, feature_map, settings)
    drawn = summaries(model)
    initialize_skipped(model)  # what FuxiCTR leaves as torch makes it: ours mends it at every start
    mended = (drawn != summaries(model)).any(axis=1)
    described["cases"][case_id] = {
        "model": cls.__name__,
        "feature_map": map_id,
        "settings": settings,
        "cannot_take": sorted(case.left_out),
        "mended": [name for name, changed in zip(sorted(model.state_dict()), mended, strict=True) if changed],
    }
    stored.update({f"{map_id}/{name}": column for name, column in columns.items()})
    stored.update({f"{case_id}/{name}": value for name, value in observe(model, in_batches(columns)).items()})


def name_of(feature_map: dict[str, Any], form: str, feature_maps: dict[str, Any]) -> str:
    """The name under which the feature map, with data in that form, is described; a new one where it is not yet."""
    described = {"form": form, **feature_map}
    known = next((name for name, other in feature_maps.items() if other == described), None)
    name = known or f"data {len(feature_maps) + 1}"
    feature_maps[name] = described
    return name


def numbers_in_columns(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The batch with its numeric column as float32 `[B, 1]`."""
    return {name: column.float().view(-1, 1) if name == "price" else column for name, column in batch.items()}


def joined(batches: list[dict[str, Tensor]]) -> dict[str, np.ndarray]:
    """The columns of all batches."""
    return {name: torch.cat([batch[name] for batch in batches]).numpy() for name in batches[0]}


def defaults_of(cls: type[BaseModel]) -> dict[str, Any]:
    """The defaults of the constructor's arguments, as JSON has them."""
    return json.loads(json.dumps(constructor_defaults(cls)))


def versions(arguments: argparse.Namespace) -> dict[str, str]:
    """Which FuxiCTR, and with what it ran."""
    git = ["git", "-C", arguments.checkout, "rev-parse", "HEAD"]
    commit = (
        arguments.commit or subprocess.run(git, check=True, capture_output=True, text=True, timeout=300).stdout.strip()
    )
    return {
        "commit": commit,
        "installed": importlib.metadata.version("fuxictr"),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


if __name__ == "__main__":
    main()
