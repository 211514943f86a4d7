"""What a process of the support table could be asked to do; without torch, so that it starts quickly."""

import os
import time

from fuxictr_llm.diagnosis.zoo_table import ZooRow

time.sleep(float(os.environ.get("SECONDS_TO_START", "0")))


def look(name: str) -> ZooRow:
    if name == "crashes":
        os._exit(3)
    if name == "hangs":
        time.sleep(60)
    if name == "fails":
        raise ValueError("of all things")
    return ZooRow(name, {"Mine": "works", "Yours": "works"})
