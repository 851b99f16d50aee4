"""What is refused, and in which words."""

from __future__ import annotations

from pathlib import Path

import pytest

from steer_proxy.settings import ConfigurationError, load
from steer_proxy.settings.errors import MAX_SHOWN
from tests.proxy.settings.conftest import Refusals

REMEDY = "a secret is written as a reference, {env: NAME} or {file: PATH}, never as its value"
OWN = "dialect: openai, base_url: 'https://h/v1'"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # Unknown keys, with the nearest known one.
        ("upstrems: {}", "steer.yaml:1: upstrems: unknown key; did you mean upstreams?"),
        ("listen:\n  prot: 1", "steer.yaml:2: listen.prot: unknown key; did you mean port?"),
        (
            "admin:\n  zzz: 1",
            "steer.yaml:2: admin.zzz: unknown key; known: host, port, token, allowed_hosts",
        ),
        (
            "upstreams: {openai: {timeouts: {conect: 1}}}",
            "steer.yaml:1: upstreams.openai.timeouts.conect: unknown key; did you mean connect?",
        ),
        (
            "upstreams: {openai: {models: {m: {qualty: 1}}}}",
            "steer.yaml:1: upstreams.openai.models.m.qualty: unknown key; did you mean quality?",
        ),
        (
            "routes: [{name: openai, retry: {max_atempts: 1}}]",
            "steer.yaml:1: routes[0].retry.max_atempts: unknown key; did you mean max_attempts?",
        ),
        (
            "routes: [{name: openai, candidates: [{upstream: openai, optoins: {}}]}]",
            "steer.yaml:1: routes[0].candidates[0].optoins: unknown key; did you mean options?",
        ),
        (
            "zzz: {url: x}",
            (
                "steer.yaml:1: zzz: unknown key; known: listen, admin, limits, database, ledger, "
                "drain_timeout, catalogue, upstreams, routes"
            ),
        ),
        # Types and bounds.
        ("listen: 4100", "steer.yaml:1: listen: expected a mapping, got 4100"),
        ("listen: {port: four}", "listen.port: expected a whole number, got 'four'"),
        ("listen: {port: true}", "listen.port: expected a number, got true or false"),
        (
            "routes: [{name: openai, rules: [{name: r, priority: no}]}]",
            "routes[0].rules[0].priority: expected a number, got true or false",
        ),
        ("upstreams: {openai: {models: {m: {quality: on}}}}", "quality: expected a number, got"),
        ("drain_timeout: true", "drain_timeout: a duration is a number of seconds or text such as"),
        ("listen: {port: 1.5}", "listen.port: expected a whole number, got 1.5"),
        (
            "listen: {port: 70000}",
            "listen.port: expected a whole number from 0 to 65535, got 70000",
        ),
        ("listen: {port: -1}", "listen.port: expected a whole number from 0 to 65535, got -1"),
        ("listen: {host: ''}", "listen.host: must not be empty, got ''"),
        ("listen: {host: [a]}", "listen.host: expected text, got a list"),
        ("listen: {allowed_hosts: a}", "listen.allowed_hosts: expected a list, got 'a'"),
        ("catalogue: maybe", "catalogue: expected true or false, got 'maybe'"),
        ("drain_timeout: soon", "drain_timeout: a duration is a number of seconds or text such as"),
        ("drain_timeout: -1", "drain_timeout: a duration is finite and not negative, got -1"),
        ("limits: {max_body: big}", "limits.max_body: a size is a whole number of bytes or text"),
        ("limits: {max_body: 0}", "limits.max_body: must be at least 1, got 0"),
        ("limits: {head_timeout: 0}", "limits.head_timeout: must be greater than 0, got 0"),
        (
            "limits: {spool_above: 2, body_memory: 1}",
            "limits.spool_above: must not exceed body_memory, got 2",
        ),
        ("routes: {}", "routes: expected a list, got a mapping"),
        ("routes: [openai]", "routes[0]: expected a mapping, got 'openai'"),
        ("upstreams: []", "upstreams: expected a mapping, got a list"),
        ("upstreams: {openai: x}", "upstreams.openai: expected a mapping, got 'x'"),
        (
            "upstreams: {openai: {breaker: {failure_rate: 7}}}",
            "upstreams.openai.breaker.failure_rate: must be above 0 and at most 1, got 7",
        ),
        (
            "routes: [{name: openai, retry: {max_attempts: 99}}]",
            "routes[0].retry.max_attempts: must be from 1 to 20, got 99",
        ),
        (
            "routes: [{name: openai, retry: {backoff_factor: fast}}]",
            "routes[0].retry.backoff_factor: expected a number, got 'fast'",
        ),
        (
            "routes: [{name: openai, budget: {cost_usd: 0}}]",
            "routes[0].budget.cost_usd: must be a finite number greater than 0, got 0",
        ),
        (
            "upstreams: {openai: {models: {m: {quality: 2}}}}",
            "upstreams.openai.models.m.quality: must be from 0 to 1, got 2",
        ),
        # Words.
        (
            "routes: [{name: openai, commit: first}]",
            (
                "routes[0].commit: expected one of headers, first_token, complete; "
                "did you mean first_token?, got 'first'"
            ),
        ),
        (
            "routes: [{name: openai, commit: 1}]",
            "routes[0].commit: expected one of headers, first_token, complete, got 1",
        ),
        (
            "routes: [{name: openai, on_break: crash}]",
            "routes[0].on_break: expected one of error, resume, got 'crash'",
        ),
        (
            "routes: [{name: openai, preset: resilent}]",
            (
                "routes[0].preset: expected one of resilient, cheap-first, strict-budget, "
                "pass-through; did you mean resilient?, got 'resilent'"
            ),
        ),
        (
            "upstreams: {openai: {idempotency_key: keep}}",
            "upstreams.openai.idempotency_key: expected one of drop, forward, got 'keep'",
        ),
        # Names and paths.
        ("routes: [{path: /v1, candidates: [openai]}]", "routes[0].name: is required"),
        ("routes: [{name: chat}]", "routes[0].path: is required"),
        ("routes: [{name: chat, path: /c}]", "routes[0].candidates: is required"),
        (
            "routes: [{name: chat, path: /c, candidates: []}]",
            "routes[0].candidates: expected at least one, got a list",
        ),
        (
            "routes: [{name: 'a b', path: /c, candidates: [openai]}]",
            "routes[0].name: expected a name of letters, digits, - and _, at most 64 characters",
        ),
        (
            "upstreams: {'a.b': {" + OWN + "}}",
            "upstreams.a.b: expected a name of letters, digits, - and _, at most 64 characters",
        ),
        (
            "routes: [{name: c, path: v1, candidates: [openai]}]",
            "routes[0].path: a path begins with a slash, got 'v1'",
        ),
        (
            "routes: [{name: c, path: /a//b, candidates: [openai]}]",
            "routes[0].path: a path has no empty or dot segments, got '/a//b'",
        ),
        (
            "routes: [{name: c, path: /a/../b, candidates: [openai]}]",
            "routes[0].path: a path has no empty or dot segments, got '/a/../b'",
        ),
        (
            "routes: [{name: c, path: /a%2Fb, candidates: [openai]}]",
            "routes[0].path: a path is plain: no query, no percent-encoding, no white space",
        ),
        (
            "routes: [{name: c, path: " + "/a" * 17 + ", candidates: [openai]}]",
            "routes[0].path: a path has at most 16 segments",
        ),
        # Addresses.
        ("upstreams: {u: {dialect: http}}", "upstreams.u.base_url: is required for an upstream of"),
        (
            "upstreams: {opnai: {base_url: 'https://h'}}",
            (
                "upstreams.opnai.dialect: is required for an upstream of your own (the catalogue "
                "knows openai): openai, anthropic, gemini, http"
            ),
        ),
        (
            "upstreams: {openai: {base_url: h/v1}}",
            "expected an address with http or https and a host",
        ),
        ("upstreams: {openai: {base_url: 'ftp://h'}}", "expected an address with http or https"),
        ("upstreams: {openai: {base_url: 'https://'}}", "expected an address with http or https"),
        (
            "upstreams: {openai: {base_url: 'https://h:0'}}",
            "expected an address with http or https",
        ),
        ("upstreams: {openai: {base_url: 'https://h:x'}}", "expected an address such as"),
        (
            "upstreams: {openai: {base_url: 'https://h/ v'}}",
            "expected an address of printable ASCII",
        ),
        ("upstreams: {openai: {base_url: 'https://hü'}}", "expected an address of printable ASCII"),
        ("upstreams: {openai: {base_url: 'https://h/v1?a=b'}}", "an address has no query and no"),
        ("upstreams: {openai: {base_url: 'https://h/v1#a'}}", "an address has no query and no"),
        ("upstreams: {openai: {base_url: 'https://h/a/../b'}}", "no empty or dot segments in its"),
        ("upstreams: {openai: {base_url: 'https://h/a//b'}}", "no empty or dot segments in its"),
        # Headers.
        ("upstreams: {openai: {headers: {Host: x}}}", "headers.Host: is the proxy's own to set"),
        ("upstreams: {openai: {headers: {X-Steer-A: x}}}", "X-Steer-A: is the proxy's own to set"),
        (
            "upstreams: {openai: {headers: {'a b': x}}}",
            "headers.a b: expected the name of a header",
        ),
        (
            "upstreams: {openai: {headers: {X-A: x, x-a: y}}}",
            "headers.x-a: appears twice, in different case",
        ),
        (
            'upstreams: {openai: {headers: {X-A: "a\\nb"}}}',
            "headers.X-A: expected one line of printable ASCII",
        ),
        ("upstreams: {openai: {headers: {X-A: [1]}}}", "headers.X-A: expected text"),
        # Options.
        (
            "routes: [{name: openai, candidates: [{upstream: openai, options: {model: 4}}]}]",
            "routes[0].candidates[0].options.model: expected the name of a model",
        ),
        (
            "routes: [{name: openai, candidates: [{upstream: openai, options: {a: .nan}}]}]",
            "routes[0].candidates[0].options: expected values that JSON can hold",
        ),
        (
            "routes: [{name: openai, rules: [{name: r, options: {model: 4}}]}]",
            "routes[0].rules[0].options.model: expected the name of a model",
        ),
    ],
)
def test_a_key_that_is_wrong(refusals: Refusals, text: str, expected: str) -> None:
    """One problem, with its place and what was expected."""
    problems = refusals(text)
    assert expected in problems[0]
    assert len(problems) == 1 or "is required" in problems[1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "upstreams: {openai: {credential: sk-live}}",
            f"upstreams.openai.credential: expected passthrough, none or a reference; {REMEDY}",
        ),
        (
            "upstreams: {openai: {credential: {value: sk-live}}}",
            (
                "upstreams.openai.credential.value: unknown key 'value'; known: env, file, header, "
                f"prefix; {REMEDY}"
            ),
        ),
        (
            "upstreams: {openai: {credential: {header: x}}}",
            f"upstreams.openai.credential: expected exactly one of env and file; {REMEDY}",
        ),
        (
            "upstreams: {openai: {credential: {env: A, file: B}}}",
            f"upstreams.openai.credential: expected exactly one of env and file; {REMEDY}",
        ),
        (
            "upstreams: {openai: {credential: {env: sk-live}}}",
            "credential.env: expected the name of an environment variable, not its value",
        ),
        (
            "upstreams: {openai: {credential: {env: [sk-live]}}}",
            "credential.env: expected the name of an environment variable",
        ),
        (
            "upstreams: {openai: {credential: {file: ''}}}",
            "credential.file: expected the path of a file",
        ),
        (
            "upstreams: {openai: {credential: {env: A, header: 'a b'}}}",
            "credential.header: expected the name of a header, such as api-key",
        ),
        (
            'upstreams: {openai: {credential: {env: A, prefix: "sk-live\\n"}}}',
            'credential.prefix: expected one line of text, such as "Bearer "',
        ),
        ("listen: {token: sk-live}", f"listen.token: {REMEDY}"),
        (
            "admin: {token: {env: A, header: x}}",
            f"admin.token.header: unknown key 'header'; known: env, file; {REMEDY}",
        ),
        (
            "upstreams: {openai: {headers: {Authorization: Bearer sk-live}}}",
            "upstreams.openai.headers.Authorization: use credential with header: authorization; "
            + REMEDY,
        ),
        (
            "upstreams: {openai: {base_url: 'https://user:sk-live@h/v1'}}",
            "upstreams.openai.base_url: an address carries no credentials; use credential",
        ),
        ("upstreams: {openai: {api_key: sk-live}}", "upstreams.openai.api_key: unknown key"),
        (
            "upstreams: {openai: {credential: {env: NOWHERE}}}",
            "upstreams.openai.credential: environment variable NOWHERE is not set",
        ),
        (
            "upstreams: {openai: {credential: {file: /nowhere/key}}}",
            "upstreams.openai.credential: file /nowhere/key cannot be read: No such file or",
        ),
        ("listen: {token: {env: EMPTY}}", "listen.token: environment variable EMPTY is empty"),
    ],
)
def test_a_secret_that_is_wrong(refusals: Refusals, text: str, expected: str) -> None:
    """The remedy is named, the value never."""
    (problem,) = refusals(text, {"EMPTY": " "})
    assert expected in problem
    assert "sk-live" not in problem


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "routes: [{name: c, path: /c, candidates: [opnai]}]",
            ["steer.yaml:1: routes[0].candidates[0]: unknown upstream opnai; did you mean openai?"],
        ),
        (
            "routes:\n- name: openai\n  rules:\n  - name: r\n    use: opnai",
            ["steer.yaml:5: routes[0].rules[0].use: unknown upstream opnai; did you mean openai?"],
        ),
        (
            "routes: [{name: openai, rules: [{name: r, use: openai, fallbacks: [opnai]}]}]",
            [
                (
                    "steer.yaml:1: routes[0].rules[0].fallbacks[0]: unknown upstream opnai; "
                    "did you mean openai?"
                )
            ],
        ),
        (
            (
                "routes: [{name: openai, candidates: [openai, anthropic]}]\n"
                "upstreams: {anthropic: {credential: none}}"
            ),
            [
                (
                    "steer.yaml:1: routes[0].candidates[1]: anthropic speaks anthropic, the route "
                    "speaks openai; candidates of a route share one dialect"
                )
            ],
        ),
        (
            "routes: [{name: openai, dialect: http}]",
            [
                (
                    "steer.yaml:1: routes[0].candidates[0]: openai speaks openai, the route speaks "
                    "http; candidates of a route share one dialect"
                )
            ],
        ),
        (
            "routes: [{name: openai, candidates: [openai, mistral]}]",
            [
                (
                    "steer.yaml:1: routes[0].candidates[1]: mistral has no credential of its own, "
                    "and a caller's goes to the home upstream openai alone; set "
                    "upstreams.mistral.credential to {env: NAME} or {file: PATH}, or to none if it "
                    "needs none"
                )
            ],
        ),
        (
            "upstreams: {Azure: {" + OWN + "}, azure: {" + OWN + "}}",
            [
                (
                    "steer.yaml:1: upstreams.azure: differs from Azure only in case or "
                    "punctuation; rename one"
                )
            ],
        ),
        (
            (
                "routes:\n- {name: a, path: /a, candidates: [openai]}\n"
                "- {name: A, path: /a/, candidates: [openai]}"
            ),
            [
                "steer.yaml:3: routes[1].name: A is taken by routes[0]",
                "steer.yaml:3: routes[1].path: /a is taken by routes[0]",
            ],
        ),
        (
            "admin: {port: 4100}",
            ["steer.yaml:1: admin.port: 4100 is the data plane's (listen.port); choose another"],
        ),
        (
            "listen: {host: 0.0.0.0}\nupstreams: {openai: {credential: {env: K}}}",
            [
                (
                    "steer.yaml:1: listen.token: is required: 0.0.0.0 can be reached from other "
                    "machines, and whoever does would use your credential of openai; set it to "
                    "{env: NAME} or {file: PATH}, or listen on 127.0.0.1"
                )
            ],
        ),
    ],
)
def test_parts_that_do_not_fit_together(refusals: Refusals, text: str, expected: list[str]) -> None:
    """Each with the remedy."""
    assert refusals(text, {"K": "k"}) == expected


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("{use: openai}", "routes[0].rules[0].name: is required"),
        ("{name: ''}", "routes[0].rules[0].name: must not be empty"),
        ("{name: ' '}", "routes[0].rules[0]: name must not be empty"),
        ("{name: r, fallbacks: [openai]}", "routes[0].rules[0]: fallbacks need use"),
        ("{name: r, priority: high}", "routes[0].rules[0].priority: expected a whole number"),
        ("{name: r, then: openai}", "routes[0].rules[0].then: unknown key; did you mean when?"),
        ("{name: r, when: [a]}", "routes[0].rules[0].when: a condition is"),
        (
            "{name: r, when: {all: [{attribute: model, operator: equal}]}}",
            "routes[0].rules[0].when.all[0].operator: unknown operator 'equal', did you mean",
        ),
        (
            "{name: r, when: {any: [{attribute: bdy.model, operator: exists}]}}",
            "routes[0].rules[0].when.any[0].attribute: unknown attribute 'bdy.model', did you mean",
        ),
        (
            "{name: r, when: {attribute: model, operator: regex, value: '('}}",
            "routes[0].rules[0].when.value: regex takes an RE2 pattern",
        ),
        (
            "{name: r, when: {not: {attribute: header.authorization, operator: equals, value: x}}}",
            "routes[0].rules[0].when.not.operator: authorization carries a credential",
        ),
        (
            "{name: r, when: {attribute: upstream.opnai.breaker, operator: equals, value: open}}",
            "routes[0].rules[0].when.attribute: unknown upstream opnai; did you mean openai?",
        ),
        ("7", "routes[0].rules[0]: expected a mapping, got 7"),
        ("{name: r}, {name: r}", "routes[0].rules[1].name: r is taken by rules[0]"),
    ],
)
def test_a_rule_that_is_wrong(refusals: Refusals, rule: str, expected: str) -> None:
    """Down to the condition at fault."""
    problem, *others = refusals(f"routes: [{{name: openai, rules: [{rule}]}}]")
    assert problem.startswith(f"steer.yaml:1: {expected}")
    assert not others


def test_everything_is_told_at_once(refusals: Refusals) -> None:
    """What is invalid in itself does not hide what does not fit together; in the file's order."""
    problems = refusals(
        "listen: {port: x}\n"
        "upstreams:\n"
        "  broken: {dialect: openia}\n"
        "  lonely: {dialect: http}\n"
        "routes:\n"
        "- {name: bad, path: no, candidates: [openai]}\n"
        "- {name: uses-broken, path: /a, candidates: [broken]}\n"
        "- {name: good, path: /b, candidates: [openai, mistral]}\n"
        "- name: rules\n"
        "  path: /c\n"
        "  candidates: [openai]\n"
        "  rules:\n"
        "  - {name: r, when: {attribute: upstream.broken.breaker, operator: exists}}\n"
        "  - {name: s, when: {attribute: modle, operator: exists}}\n"
    )
    assert [problem.partition(":")[2].split(": ")[:2] for problem in problems] == [
        ["1", "listen.port"],
        ["3", "upstreams.broken.dialect"],
        ["4", "upstreams.lonely.base_url"],
        ["6", "routes[0].path"],
        ["8", "routes[2].candidates[1]"],
        ["14", "routes[3].rules[1].when.attribute"],
    ]


def test_the_list_is_bounded(refusals: Refusals, tmp_path: Path) -> None:
    """The rest is counted."""
    text = "upstreams: {" + ", ".join(f"u{number}: {{x: 1}}" for number in range(30)) + "}"
    path = tmp_path / "many.yaml"
    path.write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        load(path, {})
    lines = str(caught.value).splitlines()
    assert len(lines) == MAX_SHOWN + 1
    assert lines[-1] == f"and {len(caught.value.problems) - MAX_SHOWN} more"


@pytest.mark.parametrize("value", ["a" * 41, "[1, 2]", "{a: 1}", "1" * 30, "true"])
def test_what_was_found_is_quoted_briefly(refusals: Refusals, value: str) -> None:
    """Long values are only named by kind."""
    (problem,) = refusals(f"routes: [{{name: openai, retry: {{backoff_factor: {value}}}}}]")
    assert len(problem) < 140


@pytest.mark.parametrize(
    ("host", "token", "refused"),
    [
        ("127.0.0.1", False, False),
        ("127.8.0.1", False, False),
        ("'::1'", False, False),
        ("localhost", False, False),
        ("0.0.0.0", False, True),
        ("10.0.0.1", False, True),
        ("'::'", False, True),
        ("steer.local", False, True),
        ("0.0.0.0", True, False),
    ],
)
def test_injected_credentials_are_not_offered_to_the_network(
    tmp_path: Path, host: str, token: bool, refused: bool
) -> None:
    """Unless every caller must present a token."""
    path = tmp_path / "steer.yaml"
    own_token = ", token: {env: K}" if token else ""
    path.write_text(
        f"listen: {{host: {host}{own_token}}}\nupstreams: {{openai: {{credential: {{env: K}}}}}}"
    )
    if refused:
        with pytest.raises(ConfigurationError, match=r"listen\.token: is required"):
            load(path, {"K": "k"})
    else:
        load(path, {"K": "k"})


def test_the_network_may_bring_its_own_credentials(tmp_path: Path) -> None:
    """Passed through, there is nothing to steal."""
    path = tmp_path / "steer.yaml"
    path.write_text("listen: {host: 0.0.0.0}\nupstreams: {openai: {credential: none}}")
    assert load(path, {}).listen.host == "0.0.0.0"
