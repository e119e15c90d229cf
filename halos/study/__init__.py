"""A study: the catalogue, a grid's cells, and where each result is."""
