"""Base models, loading of models, and the policy that a training starts from and saves."""
