"""A cell's answers: its samples and its results on tasks, made together."""
