"""The packaged YAML files: data only."""

AFFECTS_RESULTS = False  # see fuxictr_llm/common/code_digest.py
