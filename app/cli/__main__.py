"""`python -m app.cli`: the same as `tunesmith`, where nothing is installed (in the images)."""

from app.cli import main

if __name__ == "__main__":
    main()
