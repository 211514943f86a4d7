"""Language models on the disk: a named one, a folder or a Hugging Face id; found, converted and digested.

transformers is imported only to convert one.
"""

import logging
from pathlib import Path

from fuxictr_llm.common.errors import UserError, nearest, reason_of
from fuxictr_llm.common.files import cache_dir, digest_of, digest_of_file, locked, remove_abandoned, replacing_dir
from fuxictr_llm.data.assets import ASSETS, asset_dir, is_whole, seal

WEIGHTS = (".safetensors", ".bin")
# The files of weights, settings and tokenizer, on which a model's vectors depend.
DIGESTED_SUFFIXES = (*WEIGHTS, ".json", ".txt", ".model", ".jinja", ".spm", ".vocab", ".bpe", ".tiktoken")
GGUF_MODELS = [name for name, asset in ASSETS.items() if asset.members[0].endswith(".gguf")]
READY_MODELS = [name for name, asset in ASSETS.items() if asset.members[0].endswith("/config.json")]


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


def digest_of_model(folder: Path) -> str:
    """One digest over the files on which a model's vectors depend."""
    files = sorted(
        path for path in folder.iterdir() if path.suffix in DIGESTED_SUFFIXES and path.name != "manifest.json"
    )
    return digest_of({path.name: digest_of_file(path) for path in files})


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        patterns = [f"*{suffix}" for suffix in DIGESTED_SUFFIXES if suffix != ".bin"]
        folder = Path(snapshot_download(name, allow_patterns=patterns))
        if not list(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(name, allow_patterns=[*patterns, "*.bin"]))
        return folder
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
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


def _convert(name: str, folder: Path) -> None:
    from transformers import AutoTokenizer, LlamaForCausalLM

    source = asset_dir(name)
    gguf = Path(ASSETS[name].members[0]).name
    logging.info("Converting %s to safetensors (once)", gguf)
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=gguf, trust_remote_code=False)
    quantized = LlamaForCausalLM.from_pretrained(source, gguf_file=gguf)
    config = quantized.config.to_dict()
    config.pop("quantization_config", None)  # save_pretrained refuses models that carry it
    plain = LlamaForCausalLM(type(quantized.config).from_dict(config))
    plain.load_state_dict(quantized.state_dict())
    with replacing_dir(folder) as temporary:
        plain.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        seal(temporary)
