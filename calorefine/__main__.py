"""`python -m calorefine` is the command `calorefine`."""

from calorefine.cli import calorefine_main

if __name__ == "__main__":
    calorefine_main()
