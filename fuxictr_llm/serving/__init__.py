"""Export of a trained model as a folder, and predictions from such a folder."""

import fuxictr_llm.host.preprocess  # noqa: F401 - before FuxiCTR's models, which would import Ray
