"""Where the files of a run lie: in a folder of its own, or beside those of others, as earlier versions left them."""

from pathlib import Path

import pytest

from fuxictr_llm.common.run_files import run_files

LAYOUTS = pytest.mark.parametrize("files_of", [run_files, Path], ids=["own folder", "earlier version"])
