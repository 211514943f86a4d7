"""Many experiments -> tables with evidence: a plan, an engine that runs it, and what is read off the results."""
