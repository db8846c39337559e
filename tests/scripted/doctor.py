"""An examination with fixed findings: `python -m tests.scripted.doctor --json`."""

from worker.doctor.findings import failure, findings_adapter, ok

if __name__ == "__main__":
    print(findings_adapter.dump_json([ok("disk", "much"), failure("GPU", "none.")]).decode())
