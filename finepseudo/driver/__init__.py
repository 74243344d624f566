"""The driver: the story of the method, whoever does the work of it."""
