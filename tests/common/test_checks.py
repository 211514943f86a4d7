"""Values against type hints."""

from typing import Annotated

import pytest

from fuxictr_llm.common.checks import check_value
from fuxictr_llm.common.errors import UserError


@pytest.mark.parametrize("hint", [int, Annotated[int, {"a dict": "cannot be hashed"}]])
def test_a_value_is_checked_whatever_its_hint_carries(hint):
    for _ in range(2):  # an adapter that is kept works as the first time
        check_value("rows", 3, hint)
        with pytest.raises(UserError, match="config key 'rows' is '3' .*valid integer"):
            check_value("rows", "3", hint)
