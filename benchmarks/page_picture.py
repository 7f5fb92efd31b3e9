"""The page as a visitor finds it, for README: `python -m benchmarks.page_picture -o docs/page.png`.

Starts `chunkcast serve` with the tiny world, opens its page in a headless Chromium, holds some keys for a while and
takes the picture when they are let go. Needs the test extra and Chromium.
"""

import argparse
import sys
from pathlib import Path

from benchmarks import live

SIZE = {"width": 1280, "height": 800}
SETTLE_MS = 1500
"""After the last key, for what fades."""


def main(argv: list[str] | None = None) -> int:
    """0 when the picture is written."""
    from playwright.sync_api import sync_playwright

    options = _parser().parse_args(argv)
    with live.service([]) as (address, _, _), sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=live.chromium_path(), args=live.CHROMIUM)
        page = chromium.new_context(viewport=SIZE).new_page()
        page.goto(f"{address}/?seed={options.seed}&prompt={options.prompt.replace(' ', '+')}")
        page.wait_for_selector("html[data-state=live]", state="attached")
        for key in options.hold:
            page.keyboard.down(key)
        page.wait_for_timeout(1000 * options.seconds)
        for key in options.hold:
            page.keyboard.up(key)
        page.wait_for_timeout(SETTLE_MS)
        page.screenshot(path=options.output)
        chromium.close()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt", default="a green meadow by day", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--hold", default="w", help="keys, such as wl (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=4.0, help="so long they are held (default: %(default)g)")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="PNG")
    return parser


if __name__ == "__main__":
    sys.exit(main())
