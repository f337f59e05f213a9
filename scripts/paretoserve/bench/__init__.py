"""Figures to quote: accuracy on points left out, and speed. They are printed, never judged."""
