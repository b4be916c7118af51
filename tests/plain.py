"""Runs code as the plain installation does: without what the extras bring."""

import subprocess
import sys
import textwrap

from regionhash import extras

_HEAD = f"""import sys
for name in {sorted(extras._EXTRA_OF)!r}:
    sys.modules[name] = None
"""


def run_plain(code, *, options=(), cwd=None, env=None, **names):
    """Runs code in a process of its own that cannot import them; returns what it prints."""
    head = _HEAD + "".join(f"{name} = {str(value)!r}\n" for name, value in names.items())
    command = [sys.executable, *options, "-c", head + textwrap.dedent(code)]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=100, cwd=cwd, env=env
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
