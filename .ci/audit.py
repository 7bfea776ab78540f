"""Asks a database of known vulnerabilities about every package of a lock file.

    python .ci/audit.py requirements/dev.txt

Fails on a vulnerability. Where the database cannot be reached, it says "not audited" and passes. Whether the
database answers is found out with a version that is known to be vulnerable: a proxy or a mirror that answers
everything with nothing would otherwise pass for a clean audit. PIP_AUDIT_OSV_URL names another database that
speaks OSV's protocol.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

VULNERABLE = "jinja2==2.4.1"
"""CVE-2014-1402 and others."""


class AuditError(Exception):
    """The audit ended without a report; the message is its last line."""


def audit(lock: Path) -> list[dict[str, Any]]:
    """Return the packages of a lock file, each with its vulnerabilities.

    :raises AuditError: when there is no report
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip_audit", "--vulnerability-service", "osv", "--strict"]
        command += ["--disable-pip", "--no-deps", "--progress-spinner", "off", "--format", "json"]
        command += ["--output", str(report), "--requirement", str(lock)]
        done = subprocess.run(command, capture_output=True, text=True)
        if not report.exists():
            raise AuditError((done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1])
        packages: list[dict[str, Any]] = json.loads(report.read_text())["dependencies"]
        return packages


def reachable() -> bool:
    """Ask for a version that is known to be vulnerable; tell when the answer is something else."""
    with tempfile.TemporaryDirectory() as folder:
        known = Path(folder) / "known.txt"
        known.write_text(VULNERABLE)
        try:
            if any(package["vulns"] for package in audit(known)):
                return True
            reason = f"it knows of no vulnerability of {VULNERABLE}"
        except AuditError as error:
            reason = str(error)
    print(f"not audited: the database cannot be reached ({reason})")
    return False


def main(lock: Path) -> int:
    """Audit a lock file and print what is found; return the exit status."""
    if not reachable():
        return 0
    packages = audit(lock)
    found = [(package, each) for package in packages for each in package["vulns"]]
    for package, each in found:
        names, fixed = ", ".join([each["id"], *each["aliases"]]), ", ".join(each["fix_versions"])
        print(f"{package['name']} {package['version']}: {names}; fixed in: {fixed or 'no version yet'}")
    print(f"{lock}: {len(packages)} packages audited, {len(found)} known vulnerabilities")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
