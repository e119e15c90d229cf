"""Layouts of rows that people bring: what each field says, which shape a row has, and how it becomes records."""
