"""Many experiments -> tables with evidence: a plan, an engine that runs it, and what is read off the results."""

AFFECTS_RESULTS = False  # see common/code_digest.py
