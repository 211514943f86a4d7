"""Export of a trained model as a folder, and predictions from such a folder."""
