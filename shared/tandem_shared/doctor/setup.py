"""Checks of the servers and settings themselves, see shared/tandem_shared/setup/checks.py."""

from tandem_shared.doctor.findings import Finding
from tandem_shared.setup.checks import Concern, SetupChecks


class SetupCheck:
    """What an operator should correct by hand."""

    def __init__(self, checks: SetupChecks) -> None:
        self._checks = checks

    async def find(self) -> list[Concern]:
        """What seems wrong."""
        return await self._checks.find()

    async def recheck(self, suspects: list[Concern], *, fix: bool = False) -> list[Finding]:
        """What is still wrong; nothing of it can be fixed from here."""
        del fix
        still = [one for one in await self._checks.find() if one in suspects]
        return [Finding("setup-weak", one.part, one.detail) for one in still]
