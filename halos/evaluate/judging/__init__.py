"""Judging: a cell's responses against a baseline's."""
