"""A trained model as a folder, and predictions from it."""
