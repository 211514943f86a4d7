"""Vectors of texts: made, stored, given."""
