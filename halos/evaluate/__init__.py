"""Evaluation: judges and tasks."""
