"""What all other packages use: errors, files, the cache, checks, runs, processes."""
