"""What the Snakemake rules call: patterns, targets, inputs and resources."""
