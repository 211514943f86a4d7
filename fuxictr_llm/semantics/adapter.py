"""A LoRA adapter as files: peft's weights and config, merged into a language model when it is asked for vectors."""

import warnings
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from fuxictr_llm.errors import UserError, reason_of

if TYPE_CHECKING:
    from fuxictr_llm.semantics.language_model import LanguageModel

# peft's own names.
WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
LORA = "lora_"


def with_adapter(model: nn.Module, config: Any) -> nn.Module:
    """peft's `get_peft_model`, without the warning that it asks transformers for something by its old name.

    Raises:
        ValueError: the config names nothing in the model, or peft knows no default for it.
    """
    from peft import get_peft_model

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*gradient_checkpointing", category=FutureWarning)
        return get_peft_model(model, config)


def save_adapter(tuned: nn.Module, weights: Path, base: str) -> None:
    """Write the LoRA weights of a peft model to the file `weights`, peft's config beside it.

    Submodules that were trained as a whole are left out; `base` names the language model in the config.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    state = get_peft_model_state_dict(tuned)
    save_file({name: value.contiguous() for name, value in state.items() if LORA in name}, weights)
    config = copy(tuned.peft_config["default"])
    config.base_model_name_or_path, config.modules_to_save, config.inference_mode = base, None, True
    config.target_modules = sorted(config.target_modules)  # a set is written in another order by every process
    config.save_pretrained(weights.parent)


def load_adapted(language_model: "LanguageModel", adapter: Path) -> None:
    """Merge an adapter's weights into the language model's own, for good.

    Args:
        adapter: the folder with peft's two files.

    Raises:
        UserError: the files cannot be read, or are of another language model.
    """
    from peft import PeftConfig, set_peft_model_state_dict
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        weights, config = load_file(adapter / WEIGHTS), PeftConfig.from_pretrained(str(adapter))
        config.base_model_name_or_path = None  # peft warns where its folder is not the one that it was tuned in
        tuned = with_adapter(language_model.model, config)
        loaded = set_peft_model_state_dict(tuned, weights)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise _unfit(adapter, reason_of(error)) from error
    amiss = [*loaded.unexpected_keys, *(name for name in loaded.missing_keys if LORA in name)]
    if amiss:
        raise _unfit(adapter, f"{amiss[0]} is in one of them alone")
    language_model.model = tuned.merge_and_unload()


def _unfit(adapter: Path, reason: str) -> UserError:
    return UserError(
        f"the adapter {str(adapter)!r} cannot be merged into the language model: {reason}; remove it to have it tuned "
        "anew, or take the language model that it was tuned from"
    )
