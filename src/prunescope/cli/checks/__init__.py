"""What ``prunescope doctor`` looks at: each check returns what it found and what to do."""

from prunescope.cli.checks.machine import check_devices, check_disk, check_memory
from prunescope.cli.checks.result import Check, Status, checked, worst
from prunescope.cli.checks.services import check_data, check_hub, check_tracking
from prunescope.cli.checks.software import check_packages, check_python, check_shadowing

__all__ = [
    "Check",
    "Status",
    "check_data",
    "check_devices",
    "check_disk",
    "check_hub",
    "check_memory",
    "check_packages",
    "check_python",
    "check_shadowing",
    "check_tracking",
    "checked",
    "worst",
]
