"""Processes and devices: launching, Slurm, sharding, and reductions over processes."""
