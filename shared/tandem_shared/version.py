"""The version of Tandem that is installed."""

from importlib.metadata import PackageNotFoundError, version


def tandem_version() -> str:
    """The version, or `0+unknown` for a checkout that is on the path without being installed."""
    try:
        return version("tandem-jobs")
    except PackageNotFoundError:
        return "0+unknown"
