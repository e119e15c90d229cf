"""Plan of a grid before it runs: memory, hours, GPU-hours and disk space."""
