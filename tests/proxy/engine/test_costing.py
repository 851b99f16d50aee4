"""Costs of rows: reported, estimated or unknown, and never zero for what is not known."""

from __future__ import annotations

import subprocess
import sys
import threading
from dataclasses import replace
from datetime import UTC, date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from steer_policies.dialects.base import Special, Usage
from steer_proxy.engine.config import Config
from steer_proxy.engine.costing import MAX_REVISIONS, MAX_UNTOLD, Costing
from steer_proxy.engine.prices import MAX_REMEMBERED, TakesTime, _Price
from steer_proxy.engine.tariff import MAX_COST, CostSource, Sale
from steer_proxy.ledger.values import AttemptRow, Batch, BreakerEventRow, CallRow
from tests.support.sidecar import configure

CALL = CallRow(
    "c",
    "r",
    route="route",
    operation="chat.completions",
    model_requested="gpt-4o",
    model_answered="gpt-4o-2024-08-06",
    attempts=1,
    bytes_in=4000,
)
OK = AttemptRow("c", 1, "home", model="gpt-4o", outcome="ok", executed="yes", wasted=0)
LOST = OK._replace(outcome="timeout", executed="maybe", wasted=1)
REFUSED = OK._replace(outcome="throttled", executed="no", wasted=0)
COUNTED: dict[str, Any] = {"tokens_in": 1000, "tokens_out": 100}

#: gpt-4o: 2.50 dollars per million tokens in, 1.25 cached, 10 out.
WHOLE = 1000 * 2_500 + 100 * 10_000
#: 4,000 bytes are taken as 1,000 tokens, and the answer is assumed to be as long as the route says.
EXPECTED = 1000 * 2_500 + 50 * 10_000


@pytest.fixture
def config(tmp_path: Path) -> Config:
    local: dict[str, Any] = {
        "dialect": "openai",
        "base_url": "http://127.0.0.1:1/v1",
        "credential": {"env": "KEY"},
        "models": {
            "mine": {"input_usd_per_mtok": 2.0, "output_usd_per_mtok": 4.0},
            "half": {"input_usd_per_mtok": 2.0},
        },
    }
    halves = {
        "input": {"input_usd_per_mtok": 1.0},
        "output": {"output_usd_per_mtok": 1.0},
        "gpt-4o": {"output_usd_per_mtok": 2.0},
    }
    other = {
        **local,
        "models": {**local["models"], "*": {"input_usd_per_mtok": 1.0, "output_usd_per_mtok": 3.0}},
    }
    settings = {
        "upstreams": {
            "home": {"dialect": "openai", "base_url": "https://api.openai.com/v1"},
            "claude": {"dialect": "anthropic", "base_url": "https://api.anthropic.com"},
            "router": {"dialect": "openai", "base_url": "https://openrouter.ai/api/v1"},
            "halves": {
                "dialect": "openai",
                "base_url": "https://api.openai.com/v1",
                "models": halves,
            },
            "local": local,
            "other": other,
        },
        "routes": [
            {
                "name": "route",
                "path": "/route",
                "candidates": ["home", "local", "other"],
                "budget": {"completion_tokens": 50},
            }
        ],
    }
    return configure(settings, tmp_path, {"KEY": "k"})


def priced(
    config: Config, call: CallRow, *attempts: AttemptRow
) -> tuple[CallRow, list[AttemptRow]]:
    batch = Costing(config).priced(Batch([call], list(attempts)))
    return batch.calls[0], batch.attempts


@pytest.mark.parametrize(
    ("change", "cost", "source"),
    [
        pytest.param(COUNTED, WHOLE, "reported", id="counted"),
        pytest.param(
            {**COUNTED, "tokens_cached": 400}, WHOLE - 400 * 1_250, "reported", id="cached"
        ),
        pytest.param({"tokens_in": 1000}, 2_500_000, "reported", id="prompt alone"),
        pytest.param({}, None, "unknown", id="not counted"),
        pytest.param({"tokens_cached": 3}, None, "unknown", id="hardly counted"),
        pytest.param({**COUNTED, "tokens_cached": 4000}, None, "unknown", id="contradiction"),
        pytest.param({**COUNTED, "model": "deployment"}, WHOLE, "reported", id="as it answered"),
        pytest.param({**COUNTED, "upstream": "local"}, None, "unknown", id="no price"),
        pytest.param({**COUNTED, "upstream": "gone"}, None, "unknown", id="unheard of"),
        pytest.param(
            {**COUNTED, "upstream": "local", "model": "mine"}, 2_400_000, "reported", id="declared"
        ),
        pytest.param(
            {**COUNTED, "upstream": "other", "model": "mine"}, 2_400_000, "reported", id="by name"
        ),
        pytest.param({**COUNTED, "upstream": "other"}, 1_300_000, "reported", id="for all others"),
        pytest.param(
            {**COUNTED, "upstream": "local", "model": "half"}, None, "unknown", id="half declared"
        ),
        pytest.param({"model": None}, None, None, id="not sold by tokens"),
        pytest.param({"tokens_in": 2**52}, None, "unknown", id="more than anybody pays"),
    ],
)
def test_an_answer(
    config: Config, change: dict[str, Any], cost: int | None, source: str | None
) -> None:
    """Nano-dollars from what was counted, by the operator's prices before the list's."""
    call, (attempt,) = priced(config, CALL, OK._replace(**change))
    assert (attempt.cost_nusd, attempt.cost_source) == (cost, source)
    assert (call.cost_nusd, call.cost_source, call.wasted_nusd) == (cost, source, 0)


@pytest.mark.parametrize(
    ("call", "change", "wasted", "source"),
    [
        pytest.param({}, {}, EXPECTED, "estimated", id="by its size"),
        pytest.param({}, COUNTED, WHOLE, "estimated", id="as far as it was counted"),
        pytest.param({"bytes_in": 3}, {}, 2_500 + 500_000, "estimated", id="small"),
        pytest.param({"bytes_in": 0}, {}, None, "unknown", id="no body"),
        pytest.param({"operation": "audio.speech"}, {}, None, "unknown", id="sold by seconds"),
        pytest.param({"operation": "embeddings"}, {}, 2_500_000, "estimated", id="no completion"),
        pytest.param({}, {"model": "unknown"}, None, "unknown", id="no price"),
        pytest.param({}, {"model": None}, None, None, id="not sold by tokens"),
    ],
)
def test_an_attempt_that_was_lost(
    config: Config, call: dict[str, Any], change: dict[str, Any], wasted: int, source: str
) -> None:
    """It may have been billed: what it wasted is estimated, and is no cost of an answer."""
    row, (attempt,) = priced(config, CALL._replace(**call), LOST._replace(**change))
    assert (attempt.cost_nusd, attempt.cost_source) == (wasted, source)
    assert (row.cost_nusd, row.cost_source, row.wasted_nusd) == (0, None, wasted)


def test_what_is_only_a_prompt_can_be_estimated(config: Config) -> None:
    """An answer that was too large to look into still has a cost."""
    row, _ = priced(config, CALL._replace(operation="embeddings"), OK)
    assert (row.cost_nusd, row.cost_source) == (2_500_000, "estimated")


WRITTEN = (("cache_write_tokens", 1000), ("cache_write_1h_tokens", 400))


@pytest.mark.parametrize(
    ("upstream", "model", "usage", "cost", "source", "slow"),
    [
        # claude-sonnet-4-5: 3 dollars, 3.75 to write to the cache, 6 for an hour, 15 out;
        # gpt-audio: 32 in and 64 out, of text 2.50 and 10.
        pytest.param(
            "claude",
            "claude-sonnet-4-5",
            Usage(2000, 0, 100, special=Special(WRITTEN)),
            1000 * 3_000 + 600 * 3_750 + 400 * 6_000 + 100 * 15_000,
            "reported",
            False,
            id="written to the cache",
        ),
        pytest.param(
            "claude",
            "claude-sonnet-4-5",
            Usage(1000, None, 100, special=Special((("web_searches", 3),))),
            1000 * 3_000 + 100 * 15_000 + 30_000_000,
            "reported",
            True,
            id="searches",
        ),
        pytest.param(
            "claude",
            "claude-3-haiku-20240307",
            Usage(1000, None, 100, special=Special((("web_searches", 3),))),
            375_000,
            "estimated",
            True,
            id="searches without a price",
        ),
        pytest.param(
            "claude",
            "claude-sonnet-4-5",
            Usage(1000, None, 100, special=Special(unpriced=True)),
            4_500_000,
            "estimated",
            False,
            id="no price",
        ),
        pytest.param(
            "claude",
            "claude-sonnet-4-5",
            Usage(2000, 0, 100, special=Special(WRITTEN, unpriced=True)),
            1000 * 3_000 + 600 * 3_750 + 400 * 6_000 + 100 * 15_000,
            "estimated",
            False,
            id="no price, and written to the cache",
        ),
        pytest.param(
            "claude",
            "claude-sonnet-4-5",
            Usage(2000, 0, 100, special=Special(WRITTEN, (("speed", "fast"),))),
            1000 * 3_000 + 600 * 3_750 + 400 * 6_000 + 100 * 15_000,
            "estimated",
            True,
            id="tier without a price, and written to the cache",
        ),
        pytest.param(
            "home",
            "gpt-audio",
            Usage(
                1000,
                0,
                500,
                special=Special((("input_audio_tokens", 900), ("output_audio_tokens", 400))),
            ),
            100 * 2_500 + 900 * 32_000 + 100 * 10_000 + 400 * 64_000,
            "reported",
            True,
            id="audio",
        ),
        pytest.param(
            "home",
            "gpt-audio",
            Usage(1000, None, 500, special=Special((("input_audio_tokens", 1900),))),
            7_500_000,
            "estimated",
            True,
            id="contradiction",
        ),
        pytest.param(
            "home",
            "gpt-4o",
            Usage(1000, None, 100, special=Special(context=(("service_tier", "unheard of"),))),
            WHOLE,
            "estimated",
            True,
            id="tier without a price",
        ),
        pytest.param(
            "router",
            "openai/gpt-4o-mini",
            Usage(1000, None, 500, special=Special(usd=0.0042)),
            4_200_000,
            "reported",
            False,
            id="charged",
        ),
        pytest.param(
            "router",
            "not/listed",
            Usage(1000, None, 500, special=Special(usd=0.0042)),
            4_200_000,
            "reported",
            False,
            id="charged, and not listed",
        ),
        pytest.param("router", "not/listed", Usage(1000), None, "unknown", False, id="not listed"),
        pytest.param(
            "home",
            "gpt-4o",
            Usage(1000, None, 100, special=Special(usd=0.0042)),
            WHOLE,
            "reported",
            False,
            id="what no list is needed for",
        ),
        pytest.param(
            "local",
            "mine",
            Usage(1000, None, 100, special=Special(usd=0.0042)),
            2_400_000,
            "reported",
            False,
            id="declared",
        ),
        pytest.param(
            "local",
            "mine",
            Usage(1000, None, 100, special=Special(WRITTEN)),
            2_400_000,
            "estimated",
            False,
            id="declared for plain tokens",
        ),
        pytest.param(
            "home", "gpt-4o", Usage(output=9), None, "unknown", False, id="completion alone"
        ),
    ],
)
def test_what_is_billed_apart(
    config: Config,
    upstream: str,
    model: str,
    usage: Usage,
    cost: int | None,
    source: str,
    *,
    slow: bool,
) -> None:
    """By the list's own prices for it; where there are none, the rest is a mere estimate. What only
    the package can tell is told off the loop."""
    costing = Costing(config)
    tariff = costing.tariff(config.revision)
    sale = Sale("route", "chat.completions", 4000, None)
    assert tariff.quote(sale, upstream, model, usage) == (cost, source)
    if slow:
        with pytest.raises(TakesTime):
            costing.at_once(config.revision, upstream, model, None, usage)
        with pytest.raises(TakesTime):
            tariff.quote(sale, upstream, model, usage, at_once=True)
        return
    at_once = costing.at_once(config.revision, upstream, model, None, usage)
    assert at_once == (None if usage.input is None else (cost, source))
    assert tariff.quote(sale, upstream, model, usage, at_once=True) == (cost, source)


def test_a_tier_is_priced_where_the_list_knows_it() -> None:
    """By the variant of the model's prices that holds for it."""
    from genai_prices.data_snapshot import get_snapshot
    from genai_prices.types import ModelPrice, PriceVariant

    provider = get_snapshot().find_provider(None, "openai", None)
    found = provider.find_model("gpt-4o")
    assert found is not None
    cheap = PriceVariant(when={"service_tier": "flex"}, prices=ModelPrice(input_mtok=Decimal(1)))
    info = replace(found, price_variants=[cheap])
    provider = replace(provider, models=[info])
    flex = Special(context=(("service_tier", "flex"),))
    price = _Price(provider, info)
    assert price.of(Usage(1000, None, 100, special=flex)) == pytest.approx(0.002)
    both = Special(context=(("service_tier", "flex"), ("speed", "fast")))
    assert price.of(Usage(1000, None, 100, special=both)) is None


def test_what_rows_do_not_say_is_remembered(config: Config) -> None:
    """For the while until they are priced: the first of a model are, a second later."""
    costing = Costing(config)
    written = Usage(2000, 0, 100, special=Special(WRITTEN))
    costing.remember("c", 7, {1: None, 2: written, 3: Usage(5)})
    lost = LOST._replace(upstream="claude", model="claude-sonnet-4-5")
    good = lost._replace(
        n=2, outcome="ok", wasted=0, executed="yes", tokens_in=2000, tokens_out=100
    )
    batch = Batch([CALL._replace(model_answered=None)], [lost, good])
    (row,) = costing.priced(batch).calls
    assert (row.cost_nusd, row.cost_source) == (9_150_000, "reported")
    assert row.wasted_nusd == 1000 * 3_000 + 7 * 15_000
    assert costing.priced(batch).calls == [row]
    costing.remember("plain", None, {1: Usage(5)})
    assert list(costing._untold) == ["c"]


def test_what_is_written_is_forgotten(config: Config) -> None:
    """And what is not, once there is more of it than the log's queue can hold."""
    costing = Costing(config)
    most = MAX_UNTOLD + config.ledger.queue
    for number in range(most + 1):
        costing.remember(str(number), 1, {})
    assert len(costing._untold) == most
    assert "0" not in costing._untold
    costing.forget([CallRow("1", "r"), CallRow("unheard of", "r")])
    assert len(costing._untold) == most - 1
    assert "1" not in costing._untold


@pytest.mark.parametrize(
    ("usage", "bound", "cost"),
    [
        pytest.param(Usage(), 5, 1000 * 2_500 + 5 * 10_000, id="bounded by the caller"),
        pytest.param(Usage(), 50_000, EXPECTED, id="hardly bounded"),
        pytest.param(Usage(800), None, 800 * 2_500 + 50 * 10_000, id="prompt counted"),
        pytest.param(Usage(800, streamed=30), 5, 800 * 2_500 + 30 * 10_000, id="partly streamed"),
        pytest.param(Usage(output=30), None, 1000 * 2_500 + 30 * 10_000, id="completion counted"),
    ],
)
def test_what_is_not_counted_of_waste_is_estimated(
    config: Config, usage: Usage, bound: int | None, cost: int
) -> None:
    """The prompt by the request's size; the completion by what came, or by what was asked for."""
    sale = Sale("route", "chat.completions", 4000, None, bound)
    tariff = Costing(config).tariff(config.revision)
    assert tariff.quote(sale, "home", "gpt-4o", usage, wasted=True) == (cost, "estimated")


@pytest.mark.parametrize(
    ("usage", "cost", "source"),
    [
        pytest.param(Usage(800, streamed=30), 800 * 2_500 + 30 * 10_000, "estimated", id="came"),
        pytest.param(Usage(800, streamed=0), 800 * 2_500, "reported", id="nothing came"),
        pytest.param(Usage(800, None, 7), 800 * 2_500 + 7 * 10_000, "reported", id="counted"),
    ],
)
def test_a_good_stream_that_did_not_count_its_completion(
    config: Config, usage: Usage, cost: int, source: str
) -> None:
    """It had one, which is not free: by what came, and no report of the provider's."""
    costing = Costing(config)
    tariff = costing.tariff(config.revision)
    sale = Sale("route", "chat.completions", 4000, None)
    assert tariff.quote(sale, "home", "gpt-4o", usage) == (cost, source)
    assert costing.at_once(config.revision, "home", "gpt-4o", None, usage) == (cost, source)


def test_waste_without_a_size_is_not_known(config: Config) -> None:
    """As far as it was counted it is, though."""
    tariff = Costing(config).tariff(config.revision)
    sale = Sale("route", "chat.completions", None, None)
    assert tariff.quote(sale, "home", "gpt-4o", Usage(output=1), wasted=True)[0] is None
    assert tariff.quote(sale, "home", "gpt-4o", Usage(1000), wasted=True)[0] == 2_500_000


@pytest.mark.parametrize("operation", ["messages.count_tokens", "countTokens"])
@pytest.mark.parametrize("attempt", [OK, LOST])
def test_to_count_tokens_costs_nothing(config: Config, operation: str, attempt: AttemptRow) -> None:
    """Providers take no money for it, and where it fails none is wasted."""
    row, (found,) = priced(config, CALL._replace(operation=operation), attempt)
    assert (found.cost_nusd, found.cost_source) == (0, None)
    assert (row.cost_nusd, row.cost_source, row.wasted_nusd) == (0, None, 0)


@pytest.mark.parametrize("change", [COUNTED, {}, {**COUNTED, "tokens_cached": 400}])
def test_an_attempt_that_its_calls_row_tells_of(config: Config, change: dict[str, Any]) -> None:
    """It costs what it would cost with a row of its own."""
    alone, (attempt,) = priced(config, CALL, OK._replace(**change))
    told = CALL._replace(
        upstream="home", status=200, outcome="ok", attempt_model="gpt-4o", attempt_started_us=1
    )
    call, attempts = priced(config, told._replace(**change))
    assert attempts == []
    assert (call.cost_nusd, call.cost_source, call.wasted_nusd) == (
        attempt.cost_nusd,
        attempt.cost_source,
        0,
    )
    assert (call.cost_nusd, call.cost_source) == (alone.cost_nusd, alone.cost_source)


def test_no_cost_outgrows_what_a_database_can_add_up(config: Config) -> None:
    """A provider's absurd count: the row is kept, and its cost not known."""
    costing = Costing(config)
    tariff = costing.tariff(config.revision)
    sale = Sale("route", "chat.completions", 4000, None)
    most = int(MAX_COST / 2_500)
    assert tariff.quote(sale, "home", "gpt-4o", Usage(input=most))[0] == most * 2_500
    assert tariff.quote(sale, "home", "gpt-4o", Usage(input=most + 2)) == (None, "unknown")
    absurd = costing.at_once(config.revision, "home", "gpt-4o", None, Usage(input=2**62))
    assert absurd == (None, "unknown")


@pytest.mark.parametrize(
    ("model", "answered", "usage", "cost"),
    [
        pytest.param("input", "gpt-4o-2024-08-06", Usage(1000, 400, 100), 2_000_000, id="prompt"),
        pytest.param("input", None, Usage(1000), 1_000_000, id="prompt alone"),
        pytest.param("input", "unheard of", Usage(1000, None, 100), None, id="not listed"),
        pytest.param("output", "gpt-4o-2024-08-06", Usage(1000), 2_500_000, id="no completion"),
        pytest.param(
            "output", "gpt-4o-2024-08-06", Usage(1000, 400, 100), 2_100_000, id="completion"
        ),
        pytest.param("output", "unheard of", Usage(1000, None, 100), None, id="neither listed"),
        pytest.param("input", "gpt-4o", Usage(1000, None, 100), 1_200_000, id="two halves"),
        pytest.param(
            "input",
            "gpt-4o",
            Usage(1000, None, 100, special=Special(WRITTEN)),
            1_200_000,
            id="for plain tokens",
        ),
    ],
)
def test_one_declared_price(
    config: Config, model: str, answered: str | None, usage: Usage, cost: int | None
) -> None:
    """The list has the other: gpt-4o costs 2.50, 1.25 cached, and 10."""
    tariff = Costing(config).tariff(config.revision)
    sale = Sale("route", "chat.completions", 4000, answered)
    assert tariff.quote(sale, "halves", model, usage)[0] == cost


def test_what_has_a_price_at_once(config: Config) -> None:
    """What the operator declares, and what was looked up before: nothing else."""
    tariff = Costing(config).tariff(config.revision)
    sale = Sale("route", "chat.completions", 4000, "gpt-4o-2024-08-06")
    counted = Usage(input=1000, output=100)
    names = ("gpt-4o", "gpt-4o-2024-08-06")
    assert tariff.knows("local", "mine", None)
    assert not tariff.knows("local", "half", None)
    assert tariff.knows("other", "any", None)
    assert not tariff.knows("home", *names)
    assert tariff.quote(sale, "home", "gpt-4o", counted) == (WHOLE, CostSource.REPORTED)
    assert tariff.knows("home", *names)
    assert not tariff.knows("home", "gpt-4.1", "gpt-4.1")
    assert tariff.quote(sale, "home", "gpt-4o", counted, wasted=True)[1] == CostSource.ESTIMATED
    assert tariff.quote(sale, "home", "gpt-4o", counted, never_run=True) == (0, None)


def test_as_many_prices_are_remembered_as_have_room(config: Config) -> None:
    """Names of models are foreign input."""
    tariff = Costing(config).tariff(config.revision)
    sale = Sale("route", "chat.completions", 4000, None)
    for number in range(MAX_REMEMBERED + 1):
        tariff.quote(sale, "home", f"model {number}", Usage(input=1))
    assert len(tariff.rates) <= MAX_REMEMBERED
    assert tariff.knows("home", f"model {MAX_REMEMBERED}", None)
    assert not tariff.knows("home", "model 0", None)


def test_several_attempts(config: Config) -> None:
    """What was refused cost nothing; what was lost is waste; the answer is the cost."""
    attempts = [REFUSED, LOST._replace(n=2), OK._replace(n=3, **COUNTED)]
    row, found = priced(config, CALL, *attempts)
    assert [each.cost_nusd for each in found] == [0, EXPECTED, WHOLE]
    assert [each.cost_source for each in found] == [None, "estimated", "reported"]
    assert (row.cost_nusd, row.cost_source, row.wasted_nusd) == (WHOLE, "reported", EXPECTED)


def test_a_sum_with_an_unknown_part_is_unknown(config: Config) -> None:
    """A sum of less than there was would look like the truth."""
    row, _ = priced(config, CALL, LOST, LOST._replace(n=2, model="unknown"), OK._replace(n=3))
    assert row.cost_nusd is row.wasted_nusd is None
    assert row.cost_source == CostSource.UNKNOWN


def test_no_attempts(config: Config) -> None:
    """A call that was refused, or served from the ledger, cost nothing."""
    row, found = priced(config, CALL)
    assert (row.cost_nusd, row.wasted_nusd, row.cost_source, found) == (0, 0, None, [])


def test_a_batch(config: Config) -> None:
    """Calls, attempts without their call, and events; pricing twice is harmless."""
    costing = Costing(config)
    stray = OK._replace(request="other", cost_nusd=5, cost_source="reported")
    event = BreakerEventRow("e", 1)
    second = CALL._replace(id="d")
    batch = Batch(
        [CALL, second], [OK._replace(**COUNTED), stray, LOST._replace(request="d")], [event]
    )
    once = costing.priced(batch)
    assert {each.request: each.cost_nusd for each in once.attempts} == {
        "c": WHOLE,
        "other": 5,
        "d": EXPECTED,
    }
    assert [each.cost_nusd for each in once.calls] == [WHOLE, 0]
    assert once.events == [event]
    assert costing.priced(once) == once


async def test_a_call_that_is_written_now(config: Config) -> None:
    """The same figures, also where prices were not yet loaded."""
    costing = Costing(config)
    row, (attempt,) = await costing.price_call(CALL, [OK._replace(**COUNTED)])
    assert (row.cost_nusd, attempt.cost_nusd) == (WHOLE, WHOLE)
    assert await costing.price_call(row, [attempt]) == (row, [attempt])


async def test_what_takes_its_time_is_priced_in_a_thread(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call that is written now is, too; and what was remembered for it is forgotten."""
    from genai_prices.types import ModelInfo

    threads = set()
    calc_price = ModelInfo.calc_price

    def watched(*args: Any, **more: Any) -> Any:
        threads.add(threading.get_ident())
        return calc_price(*args, **more)

    monkeypatch.setattr(ModelInfo, "calc_price", watched)
    costing = Costing(config)
    costing.tariff(None).quote(Sale(None, None, 1, None), "claude", "claude-sonnet-4-5", Usage(1))
    searched = Usage(1000, None, 100, special=Special((("web_searches", 3),)))
    costing.remember("c", None, {1: searched})
    asked = OK._replace(upstream="claude", model="claude-sonnet-4-5")
    row, _ = await costing.price_call(
        CALL._replace(model_answered=None), [asked._replace(**COUNTED)]
    )
    assert (row.cost_nusd, row.cost_source) == (34_500_000, "reported")
    assert threads
    assert threading.get_ident() not in threads
    assert not costing._untold


def test_rows_are_priced_by_their_own_revision(config: Config) -> None:
    """A reload does not change what a call before it cost, for a while."""
    costing = Costing(config)
    old = CALL._replace(config_rev=config.revision)
    new = replace(config, upstreams={}, revision="new")
    costing.reconfigure(new)
    attempt = OK._replace(**COUNTED)
    assert costing.priced(Batch([old], [attempt])).calls[0].cost_nusd == WHOLE
    unknown = costing.priced(Batch([CALL._replace(config_rev="new")], [attempt]))
    assert unknown.calls[0].cost_nusd is None
    for number in range(MAX_REVISIONS):
        costing.reconfigure(replace(new, revision=str(number)))
    assert costing.priced(Batch([old], [attempt])).calls[0].cost_nusd is None
    assert len(costing._tables) == MAX_REVISIONS


LASTING = (
    ("cache_write_tokens", 1000),
    ("cache_write_1h_tokens", 400),
    ("cache_write_5m_tokens", 600),
)
USAGES = (
    Usage(1000, None, 500),
    Usage(1000, 400, 500, 10),
    Usage(1000, 0, 0),
    Usage(1000),
    Usage(1000, 1000, None),
    Usage(1_000_000, 3, 7),
    Usage(2000, 300, 100, special=Special(LASTING[:1])),
    Usage(2000, 300, 100, special=Special(LASTING)),
    Usage(1200, 300, 100, special=Special(LASTING)),
    Usage(2000, 300, 100, special=Special(LASTING[1:])),
)


def test_the_short_cut_is_what_the_package_says() -> None:
    """For every model of the list that has one: tiers, requests and cached tokens included."""
    from genai_prices.data_snapshot import get_snapshot

    compared = 0
    for provider in get_snapshot().providers:
        for info in provider.models:
            price = _Price(provider, info)
            flat, price._flat = price._flat, None
            if flat is None:
                continue
            edge = [] if flat.upto == float("inf") else [Usage(int(flat.upto) + n) for n in (0, 1)]
            for usage in (*USAGES, *edge):
                quick = flat.of(usage)
                if quick is not None:
                    assert quick == pytest.approx(price.of(usage), rel=1e-12), info.id
                    compared += 1
    assert compared > 1000


@pytest.mark.parametrize("special", [None, Special(LASTING[:1]), Special(LASTING)])
def test_writing_to_anthropics_cache_takes_no_time(special: Special | None) -> None:
    """Whatever the model, as long as it has one: it is what most of its calls do."""
    from genai_prices.data_snapshot import get_snapshot

    provider = get_snapshot().find_provider(None, "anthropic", None)
    assert len(provider.models) > 10
    for info in provider.models:
        if info.get_prices(datetime.now(UTC)).cache_write_mtok is None:
            continue  # older than the cache
        usage = Usage(2000, 300, 100, special=special)
        price = _Price(provider, info)
        quick = price.of(usage, at_once=True)
        price._flat = None
        assert quick == pytest.approx(price.of(usage), rel=1e-12), info.id


def test_prices_that_depend_on_time_have_no_short_cut() -> None:
    """Those by the hour, and those that end on a coming day; a day that has come is no matter."""
    from genai_prices.data_snapshot import get_snapshot
    from genai_prices.types import (
        ConditionalPrice,
        ModelPrice,
        StartDateConstraint,
        TimeOfDateConstraint,
    )

    provider = get_snapshot().find_provider(None, "openai", None)
    found = provider.find_model("gpt-4o")
    assert found is not None

    def flat(constraint: Any) -> Any:
        cheap = ConditionalPrice(prices=ModelPrice(input_mtok=Decimal(1)))
        dear = ConditionalPrice(constraint, prices=ModelPrice(input_mtok=Decimal(2)))
        return _Price(provider, replace(found, prices=[cheap, dear]))._flat

    assert flat(StartDateConstraint(date(2020, 1, 1))).prompt == 2.0
    assert flat(StartDateConstraint(date.max)) is None
    assert flat(TimeOfDateConstraint(time(0), time(12))) is None


def test_prices_load_only_when_something_is_priced(tmp_path: Path) -> None:
    """Neither the module nor a configuration's table loads them, nor do calls that cost nothing."""
    script = (
        "import sys\n"
        "from steer_proxy.settings import load\n"
        "from steer_proxy.engine.costing import Costing\n"
        "from steer_proxy.ledger.values import AttemptRow, Batch, CallRow\n"
        "costing = Costing(load(None, {}))\n"
        "no = AttemptRow('c', 1, 'openai', model='m', executed='no', wasted=0)\n"
        "costing.priced(Batch([CallRow('c', 'r')], [no]))\n"
        "assert 'genai_prices' not in sys.modules\n"
        "yes = no._replace(executed='yes', tokens_in=1)\n"
        "costing.priced(Batch([CallRow('c', 'r')], [yes]))\n"
        "assert 'genai_prices' in sys.modules\n"
    )
    subprocess.run(
        [sys.executable, "-c", script], check=True, env={"PYTHONPATH": ":".join(sys.path)}
    )
