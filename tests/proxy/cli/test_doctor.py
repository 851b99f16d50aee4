"""`steer doctor`: each check against machines good and bad, and the command as a whole."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import ssl
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from steer_proxy.app import Sidecar
from steer_proxy.cli import doctor, doctor_machine, doctor_online, doctor_settings
from steer_proxy.cli.findings import Finding, Level
from steer_proxy.engine.config import Config, Credential, Secret
from steer_proxy.settings import ConfigSource, load
from tests.provider import Provider
from tests.proxy.cli.conftest import Steer

OK, NOTE, WARNING, FAILURE = Level.OK, Level.NOTE, Level.WARNING, Level.FAILURE
GIB = 2**30
SECRET = "sk-never-shown"


def configured(env: dict[str, str] | None = None, **keys: Any) -> Config:
    """A configuration as a file would say it, on ports of the system's choice."""
    basis = {"listen": {"port": 0}, "admin": {"port": 0}, "database": {"url": "memory:"}}
    return load(None, env or {}, {**basis, **keys})


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that somebody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        yield listener.getsockname()[1]


# --- the machine


@pytest.mark.parametrize(
    ("version", "level"),
    [((3, 10, 9), FAILURE), ((3, 11, 0), OK), ((3, 13, 5), OK), ((3, 14, 0), NOTE)],
)
def test_python(version: tuple[int, ...], level: Level) -> None:
    assert doctor_machine.python(version).level is level


@pytest.mark.parametrize(
    ("version", "parser", "disabled", "level", "remedy"),
    [
        ((3, 14, 4), True, False, OK, ""),
        ((3, 15), True, False, OK, ""),
        ((3, 14, 3), True, False, FAILURE, "pip install 'aiohttp>=3.14.4'"),
        ((3, 14, 5), False, True, FAILURE, "unset AIOHTTP_NO_EXTENSIONS"),
        ((3, 14, 5), False, False, FAILURE, "pip install --force-reinstall"),
    ],
)
def test_aiohttp(
    version: tuple[int, ...], parser: bool, disabled: bool, level: Level, remedy: str
) -> None:
    """Old ones and those without the C parser are refused, as `steer serve` does."""
    found = doctor_machine.http_library(version, parser=parser, disabled=disabled)
    assert found.level is level
    assert found.remedy.startswith(remedy)


def test_uvloop() -> None:
    assert doctor_machine.event_loop("0.22", "linux").level is OK
    assert doctor_machine.event_loop(None, "linux").level is WARNING
    assert doctor_machine.event_loop(None, "win32").level is NOTE


@pytest.mark.parametrize(
    ("version", "bug"),
    [
        ((3, 6, 23), False),
        ((3, 7, 0), True),
        ((3, 40, 1), True),
        ((3, 44, 5), True),
        ((3, 44, 6), False),
        ((3, 45, 0), True),
        ((3, 50, 6), True),
        ((3, 50, 7), False),
        ((3, 51, 2), True),
        ((3, 51, 3), False),
        ((3, 52, 0), False),
        ((4, 0, 0), False),
    ],
)
def test_sqlite(version: tuple[int, ...], bug: bool) -> None:
    """The range of the WAL-reset bug, and the branches in which it is mended: no failure."""
    found = doctor_machine.sqlite(version)
    assert found.level is (NOTE if bug else OK)
    assert ("WAL-reset" in found.text) is bug
    assert doctor_machine.sqlite(None).level is FAILURE


def test_certificates(tmp_path: Path) -> None:
    """Loaded at once from a file, found in a folder, named by a variable and missing, or none."""
    paths = ssl.DefaultVerifyPaths(
        "/ca.pem", str(tmp_path), "SSL_CERT_FILE", "", "SSL_CERT_DIR", ""
    )
    assert doctor_machine.certificates(paths, 140, {}).text == "140 authorities in /ca.pem"
    assert doctor_machine.certificates(paths, 0, {}).level is FAILURE
    missing = doctor_machine.certificates(paths, 140, {"SSL_CERT_FILE": str(tmp_path / "none")})
    assert missing.level is FAILURE
    assert "SSL_CERT_FILE names" in missing.text
    (tmp_path / "5ed36f99.0").touch()
    assert doctor_machine.certificates(paths, 0, {"SSL_CERT_DIR": str(tmp_path)}).level is OK


@pytest.mark.parametrize(
    ("soft", "hard", "level", "remedy"),
    [
        (None, None, OK, ""),
        (8288, 8288, OK, ""),
        (8287, None, WARNING, "ulimit -n 8288,"),
        (1024, 1_048_576, WARNING, "ulimit -n 8288,"),
        (1024, 4096, WARNING, "raise the hard limit (4096)"),
    ],
)
def test_descriptors(soft: int | None, hard: int | None, level: Level, remedy: str) -> None:
    """Two for each of 4096 connections, and some for the rest."""
    found = doctor_machine.descriptors(4096, soft, hard)
    assert (found.level, found.remedy.startswith(remedy)) == (level, True)


@pytest.mark.parametrize(
    ("free", "level"),
    [(GIB, OK), (16 * 2**26, OK), (16 * 2**26 - 1, WARNING), (2**26 - 1, FAILURE)],
)
def test_spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, level: Level) -> None:
    """Room for one largest body at the least, better for sixteen."""
    usage = type("Usage", (), {"free": free})
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert doctor_machine.spool(tmp_path, 2**26).level is level


def test_spool_that_cannot_be_written(tmp_path: Path) -> None:
    assert doctor_machine.spool(tmp_path / "missing", 1).level is FAILURE


def test_clock() -> None:
    assert doctor_machine.clock(0.0).level is FAILURE
    assert doctor_machine.clock(doctor_machine.BORN).text == "2026-01-01 00:00 UTC"


@pytest.mark.parametrize(
    ("text", "numbers"), [("3.14.5", (3, 14, 5)), ("3.15.0rc1", (3, 15)), ("", ())]
)
def test_versions_are_read_up_to_their_first_letter(text: str, numbers: tuple[int, ...]) -> None:
    assert doctor_machine._numbers(text) == numbers


# --- the configuration and the environment


def test_an_invalid_configuration_is_one_finding_per_problem(tmp_path: Path) -> None:
    file = tmp_path / "steer.yaml"
    file.write_text("listen: {prt: 1}\nroutes: [{name: chat}]\n")
    found, config = doctor_settings.configuration(ConfigSource(file, {}))
    assert config is None
    assert [each.level for each in found] == [FAILURE] * len(found)
    assert "listen.prt" in found[0].text


def test_free_ports_and_those_of_the_systems_choice() -> None:
    assert [each.level for each in doctor_settings.ports(configured())] == [OK, OK]
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        free = listener.getsockname()[1]
    found = list(doctor_settings.ports(configured(listen={"port": free})))
    assert found[0].text == f"127.0.0.1:{free} is free"


def test_a_port_in_use(taken: int) -> None:
    """By something that is no Steer."""
    found = list(doctor_settings.ports(configured(listen={"port": taken})))
    assert (found[0].level, found[0].text) == (FAILURE, f"127.0.0.1:{taken} is in use")


@pytest.mark.real_time
async def test_ports_in_use_by_a_steer() -> None:
    """That is no failure: whoever asks has it running."""
    async with Sidecar(configured()) as sidecar:
        config = configured(listen={"port": sidecar.port}, admin={"port": sidecar.admin_port})
        found = await asyncio.to_thread(lambda: list(doctor_settings.ports(config)))
    assert [each.level for each in found] == [NOTE, NOTE]


def test_an_address_of_another_machine() -> None:
    found = list(doctor_settings.ports(configured(listen={"host": "192.0.2.1", "port": 4100})))
    assert found[0].text == "192.0.2.1 is not an address of this machine"


def test_credentials_are_named_and_never_shown(tmp_path: Path) -> None:
    """Resolved ones, and one whose file went bad before it was read."""
    file = tmp_path / "key"
    file.write_text(SECRET)
    config = configured(
        {"SPARE_KEY": SECRET},
        upstreams={
            "openai": {"credential": {"env": "SPARE_KEY"}},
            "groq": {"credential": {"file": str(file)}},
        },
    )
    found = list(doctor_settings.credentials(config))
    assert [each.level for each in found] == [OK, OK]
    gone = Secret(file=str(tmp_path / "gone"))
    upstream = config.upstreams["groq"]
    credential = Credential(header="authorization", prefix="", secret=gone)
    broken = replace(upstream, credential=credential)
    again = list(doctor_settings.credentials(replace(config, upstreams={"groq": broken})))
    assert [each.level for each in again] == [FAILURE]
    assert SECRET not in str(found) + str(again)
    assert [each.level for each in doctor_settings.credentials(configured())] == [OK]


@pytest.mark.parametrize(
    ("environ", "trust", "levels"),
    [
        ({}, False, [OK]),
        ({"HTTP_PROXY": ""}, False, [OK]),
        ({"HTTP_PROXY": "http://proxy:3128"}, False, [WARNING, NOTE]),
        ({"all_proxy": "socks5://proxy:1080"}, False, [WARNING, NOTE]),
        ({"HTTPS_PROXY": "http://proxy:3128"}, False, [NOTE]),
        ({"HTTP_PROXY": "http://proxy:3128", "NO_PROXY": "127.0.0.1"}, True, [NOTE]),
        ({"http_proxy": "http://proxy:3128", "no_proxy": "*"}, False, [NOTE]),
        ({"HTTP_PROXY": "http://proxy:3128", "NO_PROXY": "localhost"}, False, [WARNING, NOTE]),
    ],
)
def test_proxies(environ: dict[str, str], trust: bool, levels: list[Level]) -> None:
    """A proxy for plain HTTP would be given the calls to Steer, unless it is told otherwise."""
    config = configured(upstreams={"openai": {"trust_env": trust}})
    found = list(doctor_settings.proxies(config, environ))
    assert [each.level for each in found] == levels
    if trust:
        assert "used for openai" in found[-1].text


@pytest.mark.parametrize(
    ("value", "level"),
    [
        ("http://127.0.0.1:4100/openai/v1", OK),
        ("http://localhost:4100/openai/v1/", OK),
        ("https://api.openai.com/v1", WARNING),
        ("http://127.0.0.1:4100/openai", WARNING),
        (" ", WARNING),
    ],
)
def test_sdk_variables(value: str, level: Level) -> None:
    """Where a variable points elsewhere, calls go past Steer: the remedy is the right value."""
    config = configured(listen={"port": 4100})
    (found,) = doctor_settings.variables(config, {"OPENAI_BASE_URL": value, "OTHER": value})
    assert found.level is level
    if level is WARNING:
        assert found.remedy == "export OPENAI_BASE_URL=http://127.0.0.1:4100/openai/v1"


def test_no_sdk_variable() -> None:
    (found,) = doctor_settings.variables(configured(), {})
    assert (found.level, found.text) == (NOTE, "none is set here")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://proxy:3128", "http://proxy:3128"),
        (f"http://me:{SECRET}@proxy:3128/x?y", "http://...@proxy:3128/x"),
        (f"me:{SECRET}@proxy", "(an address with credentials)"),
        ("http://[", "(no address)"),
    ],
)
def test_addresses_are_shown_without_passwords(url: str, shown: str) -> None:
    assert doctor_settings.without_secret(url) == shown


# --- online


@pytest.mark.real_time
async def test_upstreams_that_answer_and_that_do_not(taken: int) -> None:
    """Connected to and left: not a byte is sent. Only those that a route leads to are tried."""
    async with Provider() as provider:
        found = await doctor_online._all(
            configured(
                catalogue=False,
                upstreams={
                    "good": {"dialect": "openai", "base_url": provider.base_url},
                    "gone": {
                        "dialect": "openai",
                        "base_url": "http://127.0.0.1:1",
                        "credential": "none",
                    },
                    "nowhere": {
                        "dialect": "openai",
                        "base_url": "http://steer.invalid/v1",
                        "credential": "none",
                    },
                    "plain": {
                        "dialect": "openai",
                        "base_url": f"https://127.0.0.1:{provider.port}",
                        "credential": "none",
                    },
                    "unused": {"dialect": "openai", "base_url": "http://127.0.0.1:2"},
                },
                routes=[
                    {
                        "name": "chat",
                        "path": "/v1",
                        "candidates": ["good", "gone", "nowhere", "plain"],
                    }
                ],
            )
        )
        await provider.wait_for_connections(0)
        assert provider.attempts == []
        provider.errors.clear()
    levels = {each.name: each.level for each in found}
    assert levels == {
        "upstream good": OK,
        "upstream gone": NOTE,
        "upstream nowhere": WARNING,
        "upstream plain": WARNING,
    }


@pytest.mark.real_time
async def test_an_upstream_behind_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the proxy is tried: the upstream's name may mean nothing here."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    upstream = {"dialect": "openai", "base_url": "http://steer.invalid/v1", "trust_env": True}
    (found,) = await doctor_online._all(
        configured(
            catalogue=False,
            upstreams={"far": upstream},
            routes=[{"name": "chat", "path": "/v1", "candidates": ["far"]}],
        )
    )
    assert found.text == "its proxy 127.0.0.1:1 cannot be reached: Connection refused"


@pytest.mark.real_time
async def test_an_upstream_that_is_slow(monkeypatch: pytest.MonkeyPatch, taken: int) -> None:
    """TLS with a listener that says nothing."""
    monkeypatch.setattr(doctor_online, "PATIENCE", 0.05)
    upstream = {"dialect": "openai", "base_url": f"https://127.0.0.1:{taken}/v1"}
    (found,) = await doctor_online._all(
        configured(
            catalogue=False,
            upstreams={"slow": upstream},
            routes=[{"name": "chat", "path": "/v1", "candidates": ["slow"]}],
        )
    )
    assert found.text == f"127.0.0.1:{taken} did not answer in 0.05 s"


# --- the command


def test_text_names_each_remedy() -> None:
    text = doctor.as_text([Finding("one", OK, "fine"), Finding("other", FAILURE, "bad", "do it")])
    assert text.splitlines() == [
        "ok    one    fine",
        "FAIL  other  bad",
        "             -> do it",
        "",
        "1 of 2 checks failed, 0 warned.",
    ]
    assert doctor.as_text([Finding("one", OK, "fine")]).endswith("in place: 1 checks.")
    assert "1 of 1 checks warned" in doctor.as_text([Finding("one", WARNING, "hm", "do it")])


def test_the_command(steer: Steer) -> None:
    """All checks on this machine; nothing is called."""
    result = steer("doctor", "--json", "--port", "0", "--admin-port", "0")
    data = json.loads(result.output)
    assert (result.exit_code, data["ok"]) == (0, True)
    names = [each["name"] for each in data["findings"]]
    assert names[:3] == ["python", "aiohttp", "uvloop"]
    assert not any(name.startswith("upstream") for name in names)


def test_the_command_fails_for_what_fails(steer: Steer, taken: int, tmp_path: Path) -> None:
    """A port in use, or an invalid file: exit 1, and the rest is told all the same."""
    result = steer("doctor", "--port", str(taken), "--admin-port", "0")
    assert result.exit_code == 1
    assert f"FAIL  data port      127.0.0.1:{taken} is in use" in result.output
    result = steer("doctor", "--config", str(tmp_path / "missing.yaml"))
    assert result.exit_code == 1
    assert "FAIL  configuration" in result.output
    assert "ok    python" in result.output


def test_the_command_goes_online_when_asked(
    steer: Steer, taken: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And says nothing of secrets while it does."""
    monkeypatch.setenv("MY_KEY", SECRET)
    file = tmp_path / "steer.yaml"
    file.write_text(
        "catalogue: false\n"
        "listen: {port: 0}\n"
        "admin: {port: 0}\n"
        f"upstreams: {{mine: {{dialect: openai, base_url: 'http://127.0.0.1:{taken}/v1',"
        " credential: {env: MY_KEY}}}\n"
        "routes: [{name: chat, path: /v1, candidates: [mine]}]\n"
    )
    result = steer("doctor", "--config", str(file), "--online")
    assert result.exit_code == 0
    assert f"127.0.0.1:{taken} answers in" in result.output
    assert "mine: environment variable MY_KEY is set" in result.output
    assert SECRET not in result.output
    assert os.environ["MY_KEY"] == SECRET
