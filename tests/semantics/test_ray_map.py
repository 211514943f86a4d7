"""Items mapped by Ray's processes."""

import time

import pytest

from fuxictr_llm.errors import UserError
from fuxictr_llm.semantics.ray_map import ray_map
from fuxictr_llm.semantics.vector_store import Shard


@pytest.mark.ray
def test_answers_come_as_soon_as_they_are_made(tmp_path):
    """A kill loses what is under way, not what is done and waits."""
    folder = tmp_path / "done"
    folder.mkdir()

    def slow(number):
        if number == 9:
            raise UserError("nine is too much")
        patience = time.monotonic() + 60  # a test that waits for an answer before it lets it go would hang
        while not (tmp_path / f"go {number}").exists() and time.monotonic() < patience:
            time.sleep(0.05)
        (folder / str(number)).touch()
        return Shard(str(number), "", number, 1)

    answers = ray_map(slow, [1, 2, 3, 9], workers=1)
    for count in (1, 2, 3):
        (tmp_path / f"go {count}").touch()
        assert next(answers)["rows"] == count and len(list(folder.iterdir())) == count
    with pytest.raises(UserError, match="nine is too much"):
        next(answers)
