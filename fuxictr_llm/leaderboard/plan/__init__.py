"""What a leaderboard runs."""
