"""The commands of `fuxictr-llm`, one a file: `add` declares its options, `execute` does the work."""

AFFECTS_RESULTS = False  # see common/code_digest.py
