"""`file.py:Class`: anyone's model by where its file lies, and what is said of files that do not work."""

from pathlib import Path

import pytest

from fuxictr_llm import registry
from fuxictr_llm.common.errors import UserError
from fuxictr_llm.config.resolve import constructor_hints
from support_zoo import NET

MY_NET = NET.format(name="MyNet")


def test_a_file_runs_once_wherever_it_lies_and_finds_its_neighbours():
    folder = Path("a.b/models")  # a dot in a folder's name is no package
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('must not run')")
    (folder / "parts.py").write_text("WIDTH = 3\n")
    (folder / "my_net.py").write_text("from .parts import WIDTH\n" + MY_NET)
    cls = registry.find_backbone("a.b/models/my_net.py:MyNet")
    assert registry.find_backbone(f"{Path.cwd()}/a.b/models/my_net.py:MyNet") is cls


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        (MY_NET, "my_net.py:MyNett", "unknown class 'MyNett' in model 'my_net.py:MyNett'; did you mean 'MyNet'?"),
        ("class MyNet:\n    pass\n", "my_net.py:MyNet", "is not a subclass of fuxictr.pytorch.models"),
        ("x = 1\nclass MyNet(:\n", "my_net.py:MyNet", "model 'my_net.py:MyNet': file '.*my_net.py', line 2: invalid"),
        ("import no_such\n", "my_net.py:MyNet", "my_net.py' cannot be imported: ModuleNotFoundError"),
        ("import sys; sys.exit(3)", "my_net.py:MyNet", "my_net.py' cannot be imported: SystemExit"),
        (MY_NET, "mynet.py:MyNet", "there is no file '.*mynet.py'"),
        (MY_NET, "no_such_package.nets:MyNet", "importing 'no_such_package.nets' failed"),
    ],
)
def test_a_file_that_gives_no_model_is_named(text, name, message):
    Path("my_net.py").write_text(text)
    for _ in range(2):  # what failed is not there half at the second time
        with pytest.raises(UserError, match=message):
            registry.find_backbone(name)


def test_a_constructor_with_hints_of_any_kind_gives_its_keys():
    header = "from __future__ import annotations\nfrom typing import TYPE_CHECKING\n"
    text = MY_NET.replace("hidden_units=[8]", "*, hidden_units: list[int] = None, act: NoSuchType = None")
    Path("my_net.py").write_text(header + text)
    Path("typed.py").write_text(MY_NET.replace("embedding_dim=4", "*args, width: int = None"))
    hints = constructor_hints(registry.find_backbone("my_net.py:MyNet"))
    assert {"hidden_units", "act", "net_regularizer", "monitor"} <= hints.keys() and "kwargs" not in hints
    typed = constructor_hints(registry.find_backbone("typed.py:MyNet"))
    assert typed["width"] == int | None and "args" not in typed
