"""Finds child processes by the module that they run."""

import psutil


def find_children(module: str, *, of: int | None = None) -> list[psutil.Process]:
    """The living children of a process, by default of this one, that run the module. Zombies do not count."""
    found = []
    for child in psutil.Process(of).children():
        try:
            if module in child.cmdline():
                found.append(child)
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return found
