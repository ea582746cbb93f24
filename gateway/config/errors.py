"""Everything that is wrong with a configuration, told at once."""

__all__ = ["ConfigError"]


class ConfigError(Exception):
    """`errors`: one line each, naming source, key path and what was expected."""

    def __init__(self, errors: list[str]) -> None:
        super().__init__("\n".join(errors))
        self.errors = errors
