"""``python -m ppxcls VERB ...``."""

from ppxcls.cli.verbs import main

if __name__ == "__main__":
    main()
