"""What does `python -m vecstore` do? The same as the `vecstore` command."""

from vecstore.cli import main

if __name__ == "__main__":
    main(prog_name="python -m vecstore")
