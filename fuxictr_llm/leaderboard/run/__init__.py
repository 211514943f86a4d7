"""How a leaderboard runs: processes, records, progress, tuning."""

# Modules that every run needs; torch imports the second with its first optimizer, which takes longer than a small run.
PRELOADED_FOR_RUNS = (
    "fuxictr_llm.experiment.run",
    "torch._dynamo",
    "fuxictr_llm.leaderboard.run.jobs",
)
