"""The commands ``seeonce`` and ``verify-cache``, also as ``python -m seeonce``."""

import sys

from seeonce.packages import use_own_packages


def main() -> None:
    """Run ``seeonce``: exit 0 done, 1 error, 3 partly done, 130 interrupted."""
    use_own_packages()
    from seeonce.commands.main import app, run

    sys.exit(run(app, sys.argv[1:], error_code=1))


def verify_cache() -> None:
    """Run ``verify-cache``: exit 0 equal, 1 different, 2 could not check."""
    use_own_packages()
    from seeonce.commands.main import run, verify_app

    sys.exit(run(verify_app, sys.argv[1:], error_code=2))


if __name__ == "__main__":
    main()
