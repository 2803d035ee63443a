"""Two weighted samples compared: a classifier, distances, efficiencies and widths in bins."""
