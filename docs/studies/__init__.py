"""Results of studies that are kept with the project, in a folder for each grid: studies.yaml says which."""
