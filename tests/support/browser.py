"""Pages in headless Chromium: as a user sees them, at any width, with scripts run in them."""

import json
import re
import shutil
import subprocess
import tempfile
from html import escape, unescape
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
]

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install chromium")


def chromium(address: str, *flags: str) -> str:
    """Opens an address with a profile of its own; what it prints."""
    with tempfile.TemporaryDirectory() as profile:
        command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", *flags, address]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def look(page: Path, script: str, *, width: int, fragment: str = ""):
    """What a script returns in a page that is `width` pixels wide: its JSON.

    The page stands in a frame of another one, because a window of Chromium cannot be as narrow as a phone. The script
    is the body of a function of (window, document) of the page, called when that has loaded.
    """
    with tempfile.TemporaryDirectory() as folder:
        outside = Path(folder) / "outside.html"
        outside.write_text(
            f'<body style="margin:0"><iframe style="border:0" width="{width}" height="3000" '
            f'src="{page.as_uri()}#{escape(fragment)}"></iframe><pre></pre><script>\n'
            f"const inside = (window, document) => {{ {script} }};\n"
            "const frame = document.querySelector('iframe');\n"
            "frame.onload = () => {\n"
            "  const result = inside(frame.contentWindow, frame.contentDocument);\n"
            "  document.querySelector('pre').textContent = JSON.stringify(result);\n"
            "};</script>",
            encoding="utf-8",
        )
        dom = chromium(outside.as_uri(), "--dump-dom", "--allow-file-access-from-files")
    return json.loads(unescape(re.search(r"<pre>(.*)</pre>", dom, re.DOTALL)[1]))


def screenshot(address: str, path: Path, width: int, height: int) -> None:
    """A picture of the window at that address."""
    chromium(address, f"--window-size={width},{height}", f"--screenshot={path}")
