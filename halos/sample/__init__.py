"""Sampling: responses of a model to prompt sets."""
