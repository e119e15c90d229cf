"""From sequences of token ids to log-probabilities of responses."""
