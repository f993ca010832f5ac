"""A run on disk; from many runs to a table; no torch."""
