"""What every package stands on: errors, files, checks, runs."""
