"""`python -m mixq`: the console script."""

from mixq.cli.main import main

if __name__ == "__main__":
    main()
