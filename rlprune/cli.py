"""The command line; see ARCHITECTURE."""


def main() -> None:
    raise SystemExit("not yet")
