"""The documentation site: pages of docs/, and those that are made from the code, built by Zensical (`make docs`)."""
