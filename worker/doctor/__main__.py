"""`python -m worker.doctor [--json]`: examine, show, and exit with 1 where something failed."""

import argparse
import sys

from pydantic import ValidationError

from app.core.settings import Settings
from worker.doctor.device import examine_device
from worker.doctor.environment import examine_environment
from worker.doctor.findings import Finding, failed, failure, findings_adapter, render


def main() -> int:
    """Run the command line. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m worker --check", description=__doc__)
    parser.add_argument("--json", action="store_true", help="for programs")
    options = parser.parse_args()
    findings = examine()
    print(findings_adapter.dump_json(findings).decode() if options.json else render(findings))
    return 1 if failed(findings) else 0


def examine() -> list[Finding]:
    """Examine the settings, the device and the environment."""
    try:
        settings = Settings()
    except ValidationError as error:
        # Names and reasons only: the values may be secrets.
        return [failure("settings", f"{problem['loc'][0]}: {problem['msg']}") for problem in error.errors()]
    except OSError as error:
        return [failure("settings", str(error))]
    return [*examine_device(require_gpu=settings.require_gpu), *examine_environment(settings)]


if __name__ == "__main__":
    sys.exit(main())
