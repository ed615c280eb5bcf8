"""``python -m prunescope``."""

from prunescope.cli import app

if __name__ == "__main__":
    app()
