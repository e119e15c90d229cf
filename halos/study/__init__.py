"""A study: the catalogue, the cells of a grid, and the paths of its results."""
