"""One resolved experiment -> a trained model, its metrics and its record."""
