"""Models: base models, how they are loaded, and the policy of a training."""
