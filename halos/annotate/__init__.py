"""People as judges: the page on which they vote, and their votes as a table."""
