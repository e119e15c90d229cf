"""Tuning: the choice between the trials of a sweep."""
