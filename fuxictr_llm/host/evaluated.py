"""Checks of the texts that FuxiCTR hands to `eval` or looks up by name: encoders, initializers, losses, optimizers.

They come from a config, a data set, a run or an export, so that anyone may have written them. We parse them and compare
them with what is allowed; we evaluate none. FuxiCTR evaluates metrics, regularizers and a column's `dtype` as well:
their types in `config/keys.py` leave no room for code.
"""

import ast
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from fuxictr.pytorch.models import BaseModel
from torch import nn

from fuxictr_llm.common.errors import UserError, nearest

ENCODER = "feature_encoder"
INITIALIZER = "initializer"  # in the names of the keys that FuxiCTR's get_initializer evaluates
LONGEST = 300  # characters of a text; parsing a short one is fast

ACTIVATIONS = ("relu", "sigmoid", "tanh", "softmax", "prelu", "dice")  # FuxiCTR's own names, in any case
OF_TORCH = ("ReLU", "LeakyReLU", "PReLU", "ELU", "SELU", "GELU", "SiLU", "Softplus", "Sigmoid", "Tanh", "Softmax")
# Layers that take one tensor, by the names under which FuxiCTR finds them. Its other layers evaluate their arguments.
POOLINGS = ("MaskedAveragePooling", "MaskedSumPooling", "KMaxPooling")
POOLINGS_OF_TORCH = ("AvgPool1d", "MaxPool1d", "AdaptiveAvgPool1d", "AdaptiveMaxPool1d")
NETWORKS_OF_TORCH = ("Linear", "Identity", "Dropout", "LayerNorm", "BatchNorm1d", "Flatten", "Conv1d")
LAYERS = {
    "layers": (*POOLINGS, "Dice", "GELU", "MLP_Block", "CrossNet", "CrossNetV2"),
    "nn": (*NETWORKS_OF_TORCH, *POOLINGS_OF_TORCH, *OF_TORCH),
}
INITIALIZERS = tuple(name for name in vars(nn.init) if name.endswith("_") and not name.startswith("_"))
WORDS_OF_INITIALIZERS = {
    "mode": ("fan_in", "fan_out"),
    "nonlinearity": ("linear", "sigmoid", "tanh", "relu", "leaky_relu", "selu"),
}
SHORT_LOSSES = ("bce", "binary_crossentropy")
OPTIMIZERS = tuple(
    name
    for name, cls in vars(torch.optim).items()
    if isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer) and cls is not torch.optim.Optimizer
)

ENCODERS_ALLOWED = (
    "null, a layer whose arguments are numbers ('layers.MaskedAveragePooling()', 'nn.Linear(64, 64, bias=False)'), or "
    f"a list of such; the layers are {', '.join(f'{home}.{name}' for home, names in LAYERS.items() for name in names)}"
)
INITIALIZERS_ALLOWED = (
    "functions of torch.nn.init and their arguments as numbers: 'nn.init.xavier_normal_', "
    "'partial(nn.init.normal_, std=1e-4)'"
)


def check_settings(params: Mapping[str, Any], backbone: type[BaseModel], where: str) -> None:
    """Check the settings of a model and its data; `where` names their source in errors.

    Raises:
        UserError: FuxiCTR would evaluate one of them, and it is not allowed there.
    """
    for key, value in params.items():
        if INITIALIZER in key and isinstance(value, str | bytes) and not is_initializer(value):
            raise _not_allowed(f"config key {key!r}", value, where, INITIALIZERS_ALLOWED)
    for key in ("feature_cols", "feature_specs"):
        columns = params.get(key)
        for column in columns if isinstance(columns, list) else ():
            if isinstance(column, Mapping):
                _check_encoder(column.get("name"), column.get(ENCODER), f"{key} of {where}")
    _check_names(params, "loss", _losses(), backbone, where)
    _check_names(params, "optimizer", OPTIMIZERS, backbone, where)


def check_columns(features: Mapping[str, Mapping[str, Any]], where: str) -> None:
    """Check the columns of a feature map: their encoders are evaluated.

    Raises:
        UserError: an encoder is not allowed; `where` names the source of the columns.
    """
    for name, spec in features.items():
        if isinstance(spec, Mapping):
            _check_encoder(name, spec.get(ENCODER), where)


def is_layer(text: Any) -> bool:
    """Whether a text is a call of one of LAYERS whose arguments are plain values."""
    call = _parsed(text)
    if not isinstance(call, ast.Call) or ast.unparse(call.func) not in _layer_names():
        return False
    plain = all(_is_plain(argument) for argument in call.args)
    return plain and all(one.arg and (_is_plain(one.value) or _is_activation(one)) for one in call.keywords)


def is_initializer(text: Any) -> bool:
    """Whether a text is a function of torch.nn.init, alone, in a `partial` or in a lambda, with plain arguments."""
    node = _parsed(text)
    if isinstance(node, ast.Lambda):
        call, names = node.body, ast.unparse(node.args)
        if not (isinstance(call, ast.Call) and call.args and names.isidentifier()):
            return False
        tensor, *arguments = call.args
        return ast.unparse(tensor) == names and _is_init(call.func) and _are_of_init(arguments, call.keywords)
    if isinstance(node, ast.Call):
        of_partial = ast.unparse(node.func) == "partial" and len(node.args) == 1
        return of_partial and _is_init(node.args[0]) and _are_of_init([], node.keywords)
    return node is not None and _is_init(node)


def _check_encoder(column: Any, encoder: Any, where: str) -> None:
    if not encoder:  # null and '' mean no encoder
        return
    for text in encoder if isinstance(encoder, list) else [encoder]:
        if not is_layer(text):
            raise _not_allowed(f"column {column!r}: {ENCODER}", text, where, ENCODERS_ALLOWED)


def _check_names(
    params: Mapping[str, Any], key: str, known: Sequence[str], backbone: type[BaseModel], where: str
) -> None:
    """Check that a setting names what torch has; a class that overrides FuxiCTR's `compile` may know other names."""
    own = not backbone.compile.__module__.startswith("fuxictr.")
    values = params.get(key)
    for name in values if isinstance(values, list) else [values]:
        if not isinstance(name, str | bytes):
            continue
        fits = name in known or (key == "optimizer" and str(name).lower() == "adam")
        if not fits and not (own and str(name).isidentifier()):
            allowed = f"{', '.join(sorted(known))}{nearest(str(name), known)}"
            raise _not_allowed(f"config key {key!r}", name, where, allowed)


def _losses() -> tuple[str, ...]:
    """The losses of torch that FuxiCTR can call: functions of `(input, target, ..., reduction)`."""
    names = []
    for name, function in vars(nn.functional).items():
        if inspect.isfunction(function) and not name.startswith("_"):
            arguments = [*inspect.signature(function).parameters]
            if arguments[:2] == ["input", "target"] and "reduction" in arguments:
                names.append(name)
    return (*SHORT_LOSSES, *names)


def _layer_names() -> set[str]:
    return {f"{home}.{name}" for home, names in LAYERS.items() for name in names}


def _parsed(text: Any) -> ast.expr | None:
    """The parsed text; None for what is no text or no expression."""
    if not isinstance(text, str) or len(text) > LONGEST:
        return None
    try:
        return ast.parse(text.strip(" \t"), mode="eval").body  # as `eval` reads it
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _is_plain(node: ast.expr) -> bool:
    """Whether it is a literal: a number, True, False or None, or a list or tuple of such."""
    try:
        return _is_plain_value(ast.literal_eval(node))
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return False


def _is_plain_value(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain_value(part) for part in value)
    return value is None or isinstance(value, bool | int | float)


def _words(node: ast.expr) -> list[Any]:
    """The one word, or the words of a list; None for what is no constant."""
    parts = node.elts if isinstance(node, ast.List) else [node]
    return [part.value if isinstance(part, ast.Constant) else None for part in parts]


def _is_activation(argument: ast.keyword) -> bool:
    """Whether an argument of MLP_Block names activations."""
    named = argument.arg in ("hidden_activations", "output_activation")
    known = {*ACTIVATIONS, *OF_TORCH}
    return named and all(
        isinstance(word, str) and (word in known or word.lower() in known) for word in _words(argument.value)
    )


def _is_init(node: ast.expr) -> bool:
    return ast.unparse(node).removeprefix("torch.").removeprefix("nn.init.") in INITIALIZERS and isinstance(
        node, ast.Attribute
    )


def _are_of_init(arguments: list[ast.expr], keywords: list[ast.keyword]) -> bool:
    plain = all(_is_plain(argument) for argument in arguments)
    return plain and all(
        one.arg and (_is_plain(one.value) or _words(one.value)[0] in WORDS_OF_INITIALIZERS.get(one.arg, ()))
        for one in keywords
    )


def _not_allowed(what: str, text: Any, where: str, allowed: str) -> UserError:
    shown = repr(text) if len(repr(text)) <= LONGEST else f"{repr(text)[:LONGEST]}..."
    return UserError(f"{what} is {shown} in {where}, and FuxiCTR would evaluate it; allowed are only {allowed}")
