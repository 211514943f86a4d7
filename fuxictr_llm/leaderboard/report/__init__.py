"""What a leaderboard shows: evidence, tables, plots."""
