"""Items mapped by Ray's processes."""

import time

import pytest

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.llm.vectors.encoder import ray_map
from fuxictr_llm.llm.vectors.store import Shard


@pytest.mark.ray
def test_answers_come_as_soon_as_they_are_made(tmp_path):
    """A kill loses what is under way, not what is done and waits. Ray may take the items in any order."""
    done, let_go = tmp_path / "done", tmp_path / "let go"
    done.mkdir()
    let_go.mkdir()

    def slow(number):
        before = len(list(done.iterdir()))
        if before == 3:
            raise UserError("the fourth is too much")
        patience = time.monotonic() + 60  # a map that waits for an answer before it lets it go would hang
        while len(list(let_go.iterdir())) == before and time.monotonic() < patience:
            time.sleep(0.05)
        (done / str(number)).touch()
        return Shard(str(number), "", number, 1)

    answers, rows = ray_map(slow, [1, 2, 3, 4], workers=1), []
    for count in (1, 2, 3):
        (let_go / str(count)).touch()
        rows.append(next(answers)["rows"])
        assert sorted(int(path.name) for path in done.iterdir()) == sorted(rows)
    with pytest.raises(UserError, match="the fourth is too much"):
        next(answers)
