"""`python -m nearkin`: the command line, also under torchrun."""

from nearkin.cli import main

if __name__ == "__main__":
    main()
