"""``python -m stdist`` is the command line."""

from stdist.cli import main

if __name__ == "__main__":
    main()
