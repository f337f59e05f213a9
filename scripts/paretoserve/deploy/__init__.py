"""Files that start the chosen deployment."""
