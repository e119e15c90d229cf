"""Evaluation: judges, tasks, and the divergence from the reference."""
