"""Which distributions the project installs, with which of its extras."""

import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]


def required(*extras: str) -> set[str]:
    """The names of all distributions that the project needs, with these of its extras."""
    found: set[str] = set()
    optional = [line for extra in extras for line in PROJECT["optional-dependencies"][extra]]
    todo = [Requirement(line) for line in (*PROJECT["dependencies"], *optional)]
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        if name == PROJECT["name"]:
            found |= required(*requirement.extras)
        elif name not in found or requirement.extras:
            found.add(name)
            todo += _behind(requirement)
    return found


def _behind(requirement: Requirement) -> list[Requirement]:
    """What a distribution requires, with the requirement's extras, each without its marker."""
    needs = [Requirement(line) for line in metadata.requires(requirement.name) or ()]
    extras = ("", *requirement.extras)
    chosen = [
        need
        for need in needs
        if not need.marker or any(need.marker.evaluate({"extra": extra}) for extra in extras)
    ]
    for need in chosen:
        need.marker = None
    return chosen
