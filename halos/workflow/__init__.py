"""The study as Snakemake's rules ask for it: patterns, targets, inputs and resources."""
