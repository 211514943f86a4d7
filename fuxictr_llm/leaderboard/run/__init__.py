"""How a leaderboard runs: processes, records, progress, tuning."""

# Modules that every run needs; the second is what torch imports with its first optimizer, longer than a small run takes.
PRELOADED_FOR_RUNS = (
    "fuxictr_llm.experiment.run",
    "torch._dynamo",
    "fuxictr_llm.leaderboard.run.worker",
    "fuxictr_llm.leaderboard.run.loaded",
)
