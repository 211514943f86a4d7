"""In which order a leaderboard's runs are best done."""

from collections.abc import Callable, Iterable, Sequence

from fuxictr_llm.leaderboard.plan.plan import PlannedRun


class Queue:
    """The runs that wait, in the order in which they are best done.

    First comes one run for each piece of language-model work. Others that need the same work wait until it is done, as
    long as there is anything else to do. The rest goes seed by seed, so that early on there is a whole table of few
    seeds.

    Args:
        runs: those to do.
        known: the language-model work that is done already.
        patient: whether the others wait even where there is nothing else to do, as no cache would have them wait.
    """

    def __init__(self, runs: Iterable[PlannedRun], known: Iterable[str], patient: bool = False):
        self._patient = patient
        self._known: set[str | None] = set(known)
        self._asked: set[str | None] = set()
        self._order(runs)

    def _order(self, runs: Iterable[PlannedRun]) -> None:
        runs = list(runs)
        leaders = {run.language_model: run.key for run in reversed(runs)}
        leaders = {work: key for work, key in leaders.items() if work and work not in self._known}
        self.waiting = sorted(runs, key=lambda run: (leaders.get(run.language_model) != run.key, run.seed, run.split))

    def take(self, is_ready: Callable[[PlannedRun], bool]) -> PlannedRun | None:
        """The next run, out of those that are ready."""
        able = [run for run in self.waiting if is_ready(run)]
        under_way = self._asked - self._known
        free = [run for run in able if run.language_model not in under_way]
        taken = next(iter(free or ([] if self._patient else able)), None)
        if taken is not None:
            self.waiting.remove(taken)
            self._asked |= {taken.language_model} - {None}
        return taken

    def ended(self, run: PlannedRun, well: bool) -> None:
        """Note that a run is done, with its language-model work; or that it failed, so that another may do that."""
        if well:
            self._known.add(run.language_model)
        else:
            self._asked.discard(run.language_model)

    def add(self, runs: Iterable[PlannedRun]) -> None:
        """Have these wait too."""
        if runs := list(runs):
            self._order([*self.waiting, *runs])

    def replace(self, data_set: str, runs: Sequence[PlannedRun]) -> None:
        """Have these wait in place of all others on the data set."""
        self._order([*(run for run in self.waiting if run.data_set != data_set), *runs])
