"""In which order runs start, so that a language model's work is done once and nobody waits for it idly."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from fuxictr_llm.leaderboard.plan import PlannedRun


class Queue:
    """The runs that wait.

    The first run of each piece of language-model work comes first. Others that need the same wait until it is done, as
    long as there is anything else to do. The rest goes seed by seed: early on there is a whole table, of few seeds.

    Args:
        runs: those to do.
        known: the language-model work that is done already.
    """

    def __init__(self, runs: Iterable[PlannedRun], known: Iterable[str]):
        self._known, self._asked = set(known), set()
        self._order(runs)

    def _order(self, runs: Iterable[PlannedRun]) -> None:
        runs = list(runs)
        leaders = {run.language_model: run.key for run in reversed(runs)}
        leaders = {work: key for work, key in leaders.items() if work and work not in self._known}
        self.waiting = sorted(runs, key=lambda run: (leaders.get(run.language_model) != run.key, run.seed))

    def take(self, is_ready: Callable[[PlannedRun], bool]) -> PlannedRun | None:
        """The next run, out of those that are ready."""
        able = [run for run in self.waiting if is_ready(run)]
        under_way = self._asked - self._known
        found = next((run for run in able if run.language_model not in under_way), able[0] if able else None)
        if found is not None:
            self.waiting.remove(found)
            self._asked |= {found.language_model} - {None}
        return found

    def ended(self, run: PlannedRun, well: bool) -> None:
        """A run is done, with its language-model work; or it failed, and another one may have to do that."""
        if well:
            self._known.add(run.language_model)
        else:
            self._asked.discard(run.language_model)

    def of_data(self, data_set: str) -> list[PlannedRun]:
        """Those that wait for a data set."""
        return [run for run in self.waiting if data_set_of(run) == data_set]

    def replace(self, data_set: str, runs: Sequence[PlannedRun]) -> None:
        """These are the runs on the data set now."""
        self._order([*(run for run in self.waiting if data_set_of(run) != data_set), *runs])


def data_set_of(run: PlannedRun) -> str:
    """The folder of the built data set, which is built once for all."""
    params = run.experiment.params
    return str(Path(params["data_root"]) / params["dataset_id"])
