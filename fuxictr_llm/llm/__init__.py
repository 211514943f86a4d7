"""Words -> vectors: what fields and values mean, asked of a language model. Knows no CTR model."""
