"""`tunesmith`: the command-line client. It speaks HTTP only."""


def main() -> None:
    """Placeholder until the commands land."""
