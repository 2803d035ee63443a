"""`lightning fit`: the command, and a folder for every run."""
