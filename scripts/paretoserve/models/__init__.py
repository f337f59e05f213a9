"""Models as data: dimensions, where they are read from, and the catalogue of known ones."""
