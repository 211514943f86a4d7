"""What the benches of many runs share: a log with which they go on after a kill, and the cells of their tables."""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path


class RunLog(dict[str, dict[str, float]]):
    """Key of a run -> its measures, a JSON line of `path` each."""

    def __init__(self, path: Path):
        super().__init__()
        self.path = path
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
            self.update(json.loads(line))

    def add(self, key: str, measures: dict[str, float]) -> None:
        """Keep the measures of a run, here and in the file."""
        self[key] = measures
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({key: measures}) + "\n")


def mean_and_deviation(values: Sequence[float], sign: str = "+") -> str:
    """`mean ± standard deviation`; without any value a dash."""
    if not values:
        return "-"
    deviation = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{sign}.4f}{deviation}"
