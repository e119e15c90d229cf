"""Build the site: `python -m docs.site` writes its pages to build/docs and the site itself to build/site."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from docs.site.pages import ROOT, write
from halos.errors import HalosError

BUILD = ROOT / "build"
SHIM = "https://unpkg.com/iframe-worker/shim"
"""What the theme would load for the search in pages that are opened from a folder; worker.js takes its place."""


def build(folder: Path) -> None:
    """Write the pages to `folder`/docs and the site to `folder`/site, both anew.

    Raises:
        HalosError: a link of a page leads nowhere, or the site cannot be built of the pages.
    """
    for name in ("docs", "site", ".cache"):
        shutil.rmtree(folder / name, ignore_errors=True)
    settings = write(folder)
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--config-file", str(settings)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        said = "".join(f"{done.stdout}{done.stderr}".partition("Traceback")[0])
        raise HalosError(f"the site is not whole; correct what Zensical names:\n{said}")
    for page in (folder / "site").rglob("*.html"):
        local = os.path.relpath(folder / "site/assets/worker.js", page.parent)
        page.write_text(page.read_text().replace(SHIM, local))


if __name__ == "__main__":
    try:
        build(BUILD)
    except HalosError as error:
        sys.exit(f"error: {error}")
    print(f"site: {(BUILD / 'site/index.html').relative_to(ROOT)}")
