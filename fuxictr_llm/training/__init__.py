"""How a model is built and trained."""
