"""Language models on the disk: a named one, a folder or a Hugging Face id; found, converted, digested, loaded, probed.

transformers reads network and tokenizer, and is imported only then; code in the folder is never run. Whether a network
is causal and ignores padding is seen from its hidden states: names of classes and keys of a config do not say it
reliably.

Shape symbols: `N` texts, `L` tokens, `D_llm` width of the language model.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fuxictr_llm.common.errors import UserError, nearest, reason_of
from fuxictr_llm.common.files import (
    OTHER_CACHE,
    cache_dir,
    digest_of,
    digests_of_files,
    explain_write_errors,
    remove_abandoned,
    replacing_dir,
)
from fuxictr_llm.common.locks import locked
from fuxictr_llm.data.assets import ASSETS, asset_dir, is_whole, seal
from fuxictr_llm.llm.bars import shown_as_ours
from fuxictr_llm.llm.hub import fetch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WEIGHTS = (".safetensors", ".bin")
# The files of weights, settings and tokenizer, on which a model's vectors depend.
DIGESTED_SUFFIXES = (*WEIGHTS, ".json", ".txt", ".model", ".jinja", ".spm", ".vocab", ".bpe", ".tiktoken")
GGUF_MODELS = [name for name, asset in ASSETS.items() if asset.members[0].endswith(".gguf")]
READY_MODELS = [name for name, asset in ASSETS.items() if asset.members[0].endswith("/config.json")]
CAUSAL = ("ForCausalLM", "LMHeadModel")
# What attention may be computed with: other names stand for code that transformers would fetch from the hub.
OWN_ATTENTION = ("eager", "sdpa")
# How far states may be off each other, as a share of their length, and still be the same but for rounding.
ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 0.01}
PROBED_TOKENS = 8
# Up to so many parameters are widened to float32 for a probe, so that rounding does not blur the answer.
MOST_WIDENED = 10**9


def find_language_model(name: str) -> Path:
    """The folder of a language model: a named one, a folder, or a Hugging Face id.

    Raises:
        UserError: there is no such model, or the folder is not one.
    """
    if name in GGUF_MODELS:
        return _converted(name)
    if name in READY_MODELS:
        return asset_dir(name)
    folder = Path(name).expanduser()
    if not folder.is_dir():
        folder = _from_hub(name)
    if (folder / "adapter_config.json").is_file():
        raise UserError(
            f"language_model {name!r} holds a LoRA adapter (adapter_config.json), no model by itself; merge it into "
            "its model (peft's merge_and_unload), and name the folder that save_pretrained writes then"
        )
    has_weights = any(path.suffix in WEIGHTS for path in folder.iterdir())
    if not (folder / "config.json").is_file() or not has_weights:
        raise UserError(
            f"language_model {name!r} is no language-model folder: it needs config.json, a tokenizer and "
            ".safetensors weights, as save_pretrained writes them"
        )
    return folder


def digest_of_model(folder: Path, *, read_all: bool = False) -> str:
    """One digest over the files on which a model's vectors depend; `read_all` as for `digest_of_file`."""
    files = sorted(
        path for path in folder.iterdir() if path.suffix in DIGESTED_SUFFIXES and path.name != "manifest.json"
    )
    return digest_of(dict(zip([path.name for path in files], digests_of_files(files, read_all=read_all), strict=True)))


def check_unchanged(folder: Path, sha256: str) -> None:
    """Read all files of a model that is about to be loaded: they are still those of this `digest_of_model`.

    Raises:
        UserError: they are not, whatever their sizes and times of change say.
    """
    if digest_of_model(folder, read_all=True) != sha256:
        raise UserError(
            f"language model {str(folder)!r} is damaged or was changed: its files have another sha256 than before; run "
            "the same again, and a model that is known by a name is made anew; copy a folder of your own again"
        )


def _from_hub(name: str) -> Path:
    try:
        patterns = [f"*{suffix}" for suffix in DIGESTED_SUFFIXES if suffix != ".bin"]
        folder = fetch(name, patterns)
        return folder if list(folder.glob("*.safetensors")) else fetch(name, [*patterns, "*.bin"])
    except UserError:
        raise
    except Exception as error:  # whatever the hub's package raises
        named = [*GGUF_MODELS, *READY_MODELS]
        hint = nearest(name, named) or ";"
        raise UserError(
            f"unknown language model {name!r}{hint} known: {', '.join(named)}, a folder, or a Hugging Face id "
            f"(the hub says: {reason_of(error)})"
        ) from error


def _converted(name: str) -> Path:
    """A packaged GGUF model as a Hugging Face folder, converted once: reading GGUF takes 25 s, this 1 s."""
    folder = cache_dir() / "models" / f"{name}-{ASSETS[name].sha256[:12]}"
    remove_abandoned(folder.parent)
    if not is_whole(folder):
        with locked(f"models-{folder.name}"):  # the download it is made of has a lock of its own
            if not is_whole(folder):
                _convert(name, folder)
    return folder


@shown_as_ours()
def _convert(name: str, folder: Path) -> None:
    from transformers import AutoTokenizer, LlamaForCausalLM

    source = asset_dir(name)
    if not is_whole(source, read_all=True):
        source = asset_dir(name)
    gguf = Path(ASSETS[name].members[0]).name
    logging.info("Converting %s to safetensors (once)", gguf)
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=gguf, trust_remote_code=False)
    quantized = LlamaForCausalLM.from_pretrained(source, gguf_file=gguf)
    config = quantized.config.to_dict()
    config.pop("quantization_config", None)  # save_pretrained refuses models that carry it
    plain = LlamaForCausalLM(type(quantized.config).from_dict(config))
    plain.load_state_dict(quantized.state_dict())
    with explain_write_errors(folder, OTHER_CACHE), replacing_dir(folder) as temporary:
        plain.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        seal(temporary)


@dataclass(frozen=True)
class Loaded:
    """What a folder holds.

    Attributes:
        network: up to its last hidden state; of an encoder-decoder the encoder, of a multimodal model the part that
            reads texts.
        lm_head: hidden state -> logits of tokens; None where the folder has no weights for it.
    """

    network: "PreTrainedModel"
    lm_head: nn.Module | None
    tokenizer: Any


def load_folder(folder: Path, dtype: str) -> Loaded:
    """Load a folder's network and tokenizer on the CPU, in `bfloat16` or `float32`.

    Raises:
        UserError: it cannot be loaded, wants code of its own run, or lacks weights.
    """
    from transformers import AutoConfig, AutoTokenizer

    config = None
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        if getattr(config, "_attn_implementation", None) not in (None, *OWN_ATTENTION):
            config._attn_implementation = None
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        with shown_as_ours():
            model, notes = _loader(config).from_pretrained(
                folder, config=config, dtype=getattr(torch, dtype), trust_remote_code=False, output_loading_info=True
            )
    except Exception as error:  # whatever the libraries for models, tokenizers and weights raise
        raise _unloadable(folder, config, error) from error
    network = _text_part(model, config)
    names = dict(model.named_parameters(remove_duplicate=False))
    missing = {id(names[key]): key for key in notes["missing_keys"] if key in names}
    parameters = {name: id(parameter) for name, parameter in network.named_parameters()}
    lacking = [missing[key] for name, key in parameters.items() if key in missing and _counts(network, name)]
    if lacking:
        raise UserError(
            f"language model {str(folder)!r} has no weights for {len(lacking)} of its parts, {lacking[0]!r} for one; "
            "its config.json is of another model, or a file of weights is missing: copy the folder again"
        )
    head = model.get_output_embeddings() if _is_causal_lm(config) else None
    if head is not None and any(id(parameter) in missing for parameter in head.parameters()):
        head = None
    return Loaded(network, head, tokenizer)


def _counts(network: nn.Module, name: str) -> bool:
    """Whether the last hidden state needs a weight of the file's: not a pooler, which heads stand on, nor sinusoids."""
    owner = network.get_submodule(name.rpartition(".")[0])
    return "pooler" not in name and "Sinusoidal" not in type(owner).__name__


def _loader(config: Any) -> Any:
    """The class of transformers that loads what the config describes."""
    from transformers import AutoModel, AutoModelForCausalLM, AutoModelForTextEncoding

    if _is_causal_lm(config):
        return AutoModelForCausalLM
    encoder = any(name.endswith("EncoderModel") for name in config.architectures or [])
    return AutoModelForTextEncoding if encoder else AutoModel


def _is_causal_lm(config: Any) -> bool:
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    if config.is_encoder_decoder:
        return False
    if not config.architectures:  # whether there is a head, and what it is worth, is seen when it is loaded
        return type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    return any(name.endswith(CAUSAL) for name in config.architectures)


def _text_part(model: "PreTrainedModel", config: Any) -> "PreTrainedModel":
    if config.is_encoder_decoder:
        return model.get_encoder()
    network = model.base_model if _is_causal_lm(config) else model
    inner = getattr(network, "language_model", None)
    return network if inner is None else inner.base_model


def _unloadable(folder: Path, config: Any, error: Exception) -> UserError:
    named = f"language model {str(folder)!r}"
    if "trust_remote_code" in str(error):
        return UserError(
            f"{named} wants code of its own run ('auto_map' in its config.json or tokenizer_config.json), which is "
            "never done; take a language model that transformers itself has"
        )
    reason = shorten(f"{type(error).__name__}: {error}", 240, placeholder=" ...")
    quantized = getattr(config, "quantization_config", None) or {}
    method = quantized.get("quant_method") if isinstance(quantized, dict) else getattr(quantized, "quant_method", None)
    if method:
        return UserError(
            f"{named} is quantized ({str(getattr(method, 'value', method))!r}) and cannot be loaded here: {reason}; "
            "install what is missing, or take the model that is not quantized"
        )
    if isinstance(error, UnpicklingError):  # torch advises to run what the file holds
        reason = "a .bin file in it is damaged, or holds other things than weights"
    if "ignore_mismatched_sizes" in reason:
        reason = "its weights have other shapes than its config.json says"
    return UserError(f"{named} cannot be loaded: {reason}; copy the folder again, or take another")


@dataclass(frozen=True)
class Nature:
    """What a network does with texts.

    Attributes:
        width: D_llm.
        causal: a token's state depends on it and those before it alone.
        ignores_padding: what is behind a text and masked does not change its states.
    """

    width: int
    causal: bool
    ignores_padding: bool


@torch.no_grad()
def probe(network: nn.Module, tokens: Sequence[int], padding: int) -> Nature:
    """Ask a network, in evaluation mode, for the states of some tokens.

    Args:
        tokens: ids of some ordinary tokens, no two alike.
        padding: the id to fill up with.

    Raises:
        ValueError: it gives no finite state for each token.
        Exception: whatever it raises where it does not read texts.
    """
    long, short = list(tokens), list(tokens[: len(tokens) // 2])
    width = _states(network, [long]).shape[-1]  # as it will be asked
    with widened(network):
        whole, other_end = _states(network, [long]), _states(network, [[*long[:-1], long[0]]])
        causal = _same(whole[0, :-1], other_end[0, :-1])
        if causal:  # then padding, which stands behind, cannot matter
            return Nature(width, causal, ignores_padding=True)
        alone = _states(network, [short])
        padded = _states(network, [long, short + [padding] * (len(long) - len(short))], [len(long), len(short)])
        return Nature(width, causal, ignores_padding=_same(alone[0], padded[1, : len(short)]))


@contextmanager
def widened(model: nn.Module) -> Iterator[None]:
    """For the block, the weights of a small model are float32."""
    narrow = [(parameter, parameter.data) for parameter in model.parameters() if parameter.is_floating_point()]
    if sum(weights.numel() for _, weights in narrow) > MOST_WIDENED:
        yield
        return
    for parameter, weights in narrow:
        parameter.data = weights.float()
    try:
        yield
    finally:
        for parameter, weights in narrow:
            parameter.data = weights


def _states(network: nn.Module, rows: list[list[int]], lengths: Sequence[int] | None = None) -> Tensor:
    """`[N, L, D_llm]`."""
    device = next(network.parameters()).device
    ids = torch.tensor(rows, device=device)
    real = torch.tensor(lengths or [len(rows[0])] * len(rows), device=device).unsqueeze(1)
    mask = (torch.arange(ids.shape[1], device=device) < real).long()
    states = network(input_ids=ids, attention_mask=mask).last_hidden_state
    if states.dim() != 3 or states.shape[:2] != ids.shape:
        raise ValueError(f"of {ids.shape[1]} tokens it gives states of shape {list(states.shape)}")
    if not bool(torch.isfinite(states[mask.bool()]).all()):
        raise ValueError("its hidden states are not finite numbers")
    return states


def _same(states: Tensor, others: Tensor) -> bool:
    """Whether no token's state is off by more than rounding."""
    tolerance = ROUNDING.get(states.dtype, max(ROUNDING.values()))
    lengths = states.float().norm(dim=-1).clamp(min=torch.finfo(torch.float32).tiny)
    return ((states.float() - others.float()).norm(dim=-1) / lengths).max().item() <= tolerance
