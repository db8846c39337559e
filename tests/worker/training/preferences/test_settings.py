"""The settings of preference methods and TRL's configurations have the same names and defaults."""

from dataclasses import fields

import pytest
from trl import DPOConfig, KTOConfig

from app.core.specs.methods import DpoSpec, KtoSpec, OrpoSpec


def test_names_and_defaults_are_those_of_trl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    from trl.experimental.orpo import ORPOConfig

    for config, spec in ((DPOConfig, DpoSpec), (KTOConfig, KtoSpec), (ORPOConfig, OrpoSpec)):
        known = {field.name: field for field in fields(config)}
        for name, field in spec.model_fields.items():
            there = known[name]
            default = there.default_factory() if callable(there.default_factory) else there.default
            assert default in (field.default, [field.default]), name
