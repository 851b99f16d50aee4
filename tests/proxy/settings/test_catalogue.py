"""The well-known providers."""

from __future__ import annotations

import pytest

from steer_policies.config import DialectName
from steer_proxy.catalogue import CREDENTIAL_OF, DEFAULT_ROUTE, PROVIDERS, Provider
from steer_proxy.settings.fields import parse_base_url, parse_route_path

ALL = pytest.mark.parametrize("provider", PROVIDERS.values(), ids=lambda each: each.name)


@ALL
def test_addresses_and_paths_are_as_configuration_would_have_them(provider: Provider) -> None:
    """Normal already."""
    assert parse_base_url(provider.base_url) == provider.base_url
    assert parse_route_path(provider.path) == provider.path


@ALL
def test_variables_stand_for_the_path_without_what_the_sdk_appends(provider: Provider) -> None:
    """Otherwise the SDK would append it twice."""
    for variable in provider.variables:
        assert provider.path.endswith(variable.without)


@ALL
def test_aliases_lead_into_the_route(provider: Provider) -> None:
    """And begin inside it."""
    for prefix, means in provider.aliases:
        assert prefix.startswith(provider.path + "/")
        assert means.startswith(provider.path)


def test_names_paths_and_variables_are_unique() -> None:
    """No two providers claim the same."""
    paths = [provider.path for provider in PROVIDERS.values()] + [DEFAULT_ROUTE[1]]
    variables = [each.name for provider in PROVIDERS.values() for each in provider.variables]
    assert len(set(paths)) == len(paths)
    assert len(set(variables)) == len(variables)
    assert DEFAULT_ROUTE[2] in PROVIDERS


def test_every_dialect_has_a_form_of_credential() -> None:
    """Lower-case names, as they are compared."""
    assert set(CREDENTIAL_OF) == set(DialectName)
    assert PROVIDERS["anthropic"].credential_header == "x-api-key"
    assert all(header == header.lower() for header, _ in CREDENTIAL_OF.values())
