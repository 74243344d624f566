"""What a user takes home: the labels of a run in forms that other programs read, and why a clip has its label."""
