"""Divergence: how far a policy is from its reference, on its own samples."""
