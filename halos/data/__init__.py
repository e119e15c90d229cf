"""Data: from named sources to feedback records, one per prompt."""
