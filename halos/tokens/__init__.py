"""Tokens: chat templates, and the sequence store of a dataset and a model."""
