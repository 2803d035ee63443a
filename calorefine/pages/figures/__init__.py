"""The kinds of picture, drawn by matplotlib."""
