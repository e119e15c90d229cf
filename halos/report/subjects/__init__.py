"""The subjects of a report, one file each: the numbers, the table and the figure of each."""
