"""Scores of responses: by a verifier, a reward model, or a model behind a server. Judges and labellers share them."""
