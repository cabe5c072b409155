"""A real browser, which resolves the names that a test gives it and reaches this machine only."""

import asyncio
import re
import shutil
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")


async def rendered(url: str, profile: Path, *local_names: str) -> tuple[str, str]:
    """The page's DOM after its scripts have run, and what the browser complained of.

    The browser resolves `local_names` to this machine, and no other name.
    """
    rules = [
        *(f"MAP {name} 127.0.0.1" for name in local_names),
        "MAP * ~NOTFOUND",
        "EXCLUDE 127.0.0.1",
    ]
    process = await asyncio.create_subprocess_exec(
        str(CHROMIUM),
        *("--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"),
        f"--host-resolver-rules={', '.join(rules)}",
        *("--enable-logging=stderr", "--virtual-time-budget=20000", "--dump-dom", url),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(90):
        dom, log = await process.communicate()
    complaints = re.findall(r".*CONSOLE.*", log.decode(errors="replace"))
    return dom.decode(), "\n".join(complaints)
