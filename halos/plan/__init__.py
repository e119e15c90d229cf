"""What a grid will cost: memory, hours, GPU-hours and disk."""
