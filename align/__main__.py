"""`python -m align` is the command line, which lives above this package."""


def main() -> None:
    """Hand over to the command line."""
    from recipes.cli import main

    main()


if __name__ == "__main__":
    main()
