"""The data report of a dataset as one model sees it."""
