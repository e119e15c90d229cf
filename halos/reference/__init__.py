"""Log-probabilities under a reference: computed once, read by every loss."""
