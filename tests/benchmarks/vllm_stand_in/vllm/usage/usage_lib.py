"""Who uses an engine."""

from enum import StrEnum


class UsageContext(StrEnum):
    LLM_CLASS = "LLM_CLASS"
