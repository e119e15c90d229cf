"""Processes and devices: launching, sharding, and sums over processes."""
