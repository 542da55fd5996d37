"""``python -m corit_cli`` is ``corit``; torchrun starts it so."""

from corit_cli.cli.app import main

if __name__ == "__main__":
    main()
