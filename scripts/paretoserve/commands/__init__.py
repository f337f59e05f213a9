"""The commands of the command line: each module adds one to the parser by its `add(doors)`."""
