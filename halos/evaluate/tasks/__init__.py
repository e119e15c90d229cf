"""Tasks of lm-eval, and local ones made from held-out feedback."""
