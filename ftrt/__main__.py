"""`python -m ftrt` is the command `ftrt`."""

from ftrt.cli import main

if __name__ == "__main__":
    main()
