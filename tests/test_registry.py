"""Names find classes, and FuxiCTR's own scripts find ours."""

import dataclasses

import pytest

from fuxictr_llm import load_experiment, model_zoo, registry
from fuxictr_llm.common.errors import UserError
from fuxictr_llm.enhancement.base import Enhancement


@pytest.fixture(autouse=True)
def _same_registry_afterwards(monkeypatch):
    for name in registry.method_names():
        registry.find_method(name)  # registers it once a process, so not into the copy below
    monkeypatch.setattr(registry, "_backbones", dict(registry._backbones))
    monkeypatch.setattr(registry, "_methods", dict(registry._methods))


def test_the_zoo_is_an_attribute_away():
    assert model_zoo.DeepFM.__name__ == "DeepFM"
    assert model_zoo.DeepFM_LLaCTR is registry.find_model("DeepFM_LLaCTR")
    assert issubclass(model_zoo.DeepFM_LLaCTR, model_zoo.DeepFM)
    with pytest.raises(AttributeError, match="did you mean 'DeepFM'"):
        model_zoo.DeepFN  # noqa: B018
    assert not hasattr(model_zoo, "DeepFM_LLaCRT") and not hasattr(model_zoo, "__wrapped__")


def test_a_registered_backbone_is_found_and_a_clash_is_an_error():
    @registry.register_backbone
    class MyNet(registry.find_backbone("DNN")):
        pass

    assert registry.find_backbone("MyNet") is MyNet and "MyNet" in registry.backbone_names()
    other = type("MyNet", (registry.find_backbone("FM"),), {"__module__": "elsewhere"})
    with pytest.raises(UserError, match="'MyNet' of elsewhere is already registered"):
        registry.register_backbone(other)
    with pytest.raises(UserError, match="not a subclass of fuxictr.pytorch.models.BaseModel"):
        registry.register_backbone(int)


def test_a_registered_method_makes_classes():
    @dataclasses.dataclass
    class Config:
        strength: float = 1.0

    class Method(Enhancement):
        pass

    class Outdated(Enhancement):
        def kept(self):
            pass

    registry.register_method(name="Mine", config_cls=Config, model_cls=Method)
    assert registry.find_model("FM_Mine").enhancement_cls is Method
    for name, config_cls, model_cls, message in (
        ("my_method", Config, Method, "must be letters and digits"),
        ("llactr", Config, Method, "clashes with 'LLaCTR'|clashes"),
        ("Other", dict, Method, "must be a dataclass"),
        ("Other", Config, int, "must be an Enhancement"),
        ("Other", Config, Outdated, "defines the hook 'kept', which is called 'on_save_weights' now"),
    ):
        registry.find_method("LLaCTR")
        with pytest.raises(UserError, match=message):
            registry.register_method(name=name, config_cls=config_cls, model_cls=model_cls)


def test_misspelt_names_of_entries_for_classes_name_the_nearest(configs):
    (configs / "model_config.yaml").write_text("MyNet: {model: my_net.py:MyNet}\n")
    (configs / "method_config" / "mine.yaml").write_text("Spread: {method: spread.py:Spread}\n")
    with pytest.raises(UserError, match="did you mean 'MyNet'"):
        load_experiment("MyNett_shop", configs)
    with pytest.raises(UserError, match="did you mean 'Spread'"):
        load_experiment("DeepFM_Sprad_shop", configs)
