"""Forward passes: from sequences of token ids to log-probabilities of responses, values and scores."""
