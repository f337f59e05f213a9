"""What people read: the report in the terminal, the plot as a picture, the CSV files."""
