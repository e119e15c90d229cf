"""Online stages: labels for samples, and the rounds put together as one run."""
