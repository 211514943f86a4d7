"""Many experiments -> tables, evidence, plots; published figures beside our own."""
