"""One file per verb of the command line: it reads files, calls a room, writes beside and moves into place."""
