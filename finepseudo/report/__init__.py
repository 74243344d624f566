"""A run for people: the lines it prints, one static page, and label seeds side by side."""
