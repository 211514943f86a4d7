"""Backbones and methods. `fuxictr_llm.model_zoo.DeepFM_LLaCTR` is a class, so FuxiCTR's scripts find it by name."""


def __getattr__(name: str) -> type:
    if name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from fuxictr_llm.common.errors import UserError
    from fuxictr_llm.registry import find_model

    try:
        return find_model(name)
    except UserError as error:
        raise AttributeError(str(error)) from error
