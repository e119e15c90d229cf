"""Publishing: model cards, one page for a grid, an RO-Crate."""
