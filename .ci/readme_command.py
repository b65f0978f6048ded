"""Prints one of the README's two commands, so that CI and the tests run what a reader would type.

python3 .ci/readme_command.py quickstart|tests
"""

import re
import sys
from pathlib import Path


def command(name: str) -> str:
    """The shell command in the block that follows the HTML comment `<!-- command: NAME -->`."""
    readme = (Path(__file__).resolve().parents[1] / "README.md").read_text()
    found = re.search(rf"<!-- command: {re.escape(name)} -->\s*```bash\n(.*?)```", readme, re.DOTALL)
    if found is None:
        sys.exit(f"README.md has no command block named {name}")
    return found.group(1).strip()


if __name__ == "__main__":
    print(command(sys.argv[1]))
