"""How a leaderboard runs: processes, records, progress, tuning."""

# What a run imports. The second is what torch imports with its first optimizer, which takes longer than a small run.
PRELOADED = ("fuxictr_llm.experiment.run", "torch._dynamo")
PRELOADED += ("fuxictr_llm.leaderboard.run.worker", "fuxictr_llm.leaderboard.run.loaded")
