"""How a leaderboard runs: processes, records, progress, tuning."""
