"""Log-probabilities under a reference, computed once and read by every loss."""
