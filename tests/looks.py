"""What a process of the support table could be asked to do; without torch, so that it starts quickly."""

import os
import time

from fuxictr_llm.diagnosis.zoo_table import ZooRow


def look(name: str) -> ZooRow:
    if name == "crashes":
        os._exit(3)
    if name == "hangs":
        time.sleep(60)
    if name == "fails":
        raise ValueError("of all things")
    return ZooRow(name, {"Mine": "works", "Yours": "works"})


class SlowToArrive:
    """The same, from a process that takes a while until it has unpickled it."""

    def __init__(self, seconds: float):
        self.seconds = seconds

    def __setstate__(self, state: dict) -> None:
        time.sleep(state["seconds"])

    def __call__(self, name: str) -> ZooRow:
        return look(name)
