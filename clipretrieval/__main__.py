"""``python -m clipretrieval``."""

from clipretrieval.cli import main

if __name__ == "__main__":
    main()
