"""Training: the last stage of a cell, from its parent's weights."""
