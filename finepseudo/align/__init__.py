"""The alignment maths: distances, scores, losses, gallery and pseudo-labels. Imports torch and numpy only."""
