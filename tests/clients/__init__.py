"""The usual clients of OpenAI's API, unmodified, against the whole stack (docs/decisions/0040).

Each client has an environment of its own, since they conflict with each other and with this project.
"""
