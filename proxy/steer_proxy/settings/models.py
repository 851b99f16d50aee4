"""The shape of `steer.yaml`, key by key.

Blocks that policies understand are the frozen dataclasses of `steer_policies.config` themselves;
what stands here is the rest: references, short forms, and what ties a file together. Unknown keys
are errors everywhere.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from steer_policies.budget import BudgetPolicy
from steer_policies.conditions import ALWAYS
from steer_policies.config import (
    BreakerPolicy,
    CallTimeouts,
    CommitPoint,
    ConcurrencyLimit,
    DialectName,
    ModelFacts,
    OnBreak,
    RetryPolicy,
    Seconds,
    Timeouts,
)
from steer_policies.idempotency import IdempotencyPolicy
from steer_policies.route import Order, UsageMode
from steer_proxy.engine.config import LedgerTerms, Limits
from steer_proxy.settings.fields import (
    NAME,
    BaseUrl,
    CandidateField,
    CredentialField,
    CredentialRef,
    Headers,
    Options,
    RoutePath,
    SecretField,
    WhenField,
)
from steer_proxy.settings.storage import DEFAULT_URL, DatabaseUrl

Name = Annotated[str, Field(pattern=f"^{NAME}$")]
Port = Annotated[int, Field(ge=0, le=65535)]
Host = Annotated[str, Field(min_length=1, max_length=255)]


class Block(BaseModel):
    """A mapping of the file."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)


class ListenBlock(Block):
    """Where the data plane listens, and the token every caller must present."""

    host: Host = "127.0.0.1"
    port: Port = 4100
    token: SecretField | None = None
    allowed_hosts: tuple[Host, ...] = ()


class AdminBlock(Block):
    """Where the admin plane listens. Health needs no token, and there is nothing else yet."""

    host: Host = "127.0.0.1"
    port: Port = 4101
    token: SecretField | None = None
    allowed_hosts: tuple[Host, ...] = ()


class EncryptionKeyBlock(Block):
    """A key of the ring: its name, and a reference to its 32 bytes."""

    id: Name
    secret: SecretField


class EncryptionBlock(Block):
    """With which keys stored answers are encrypted, and whether others are read."""

    keys: Annotated[tuple[EncryptionKeyBlock, ...], Field(min_length=1)]
    plaintext: Literal["read", "refuse"] = "read"


class DatabaseBlock(Block):
    """Where the ledger is."""

    url: DatabaseUrl = DEFAULT_URL
    encryption: EncryptionBlock | None = None
    required: bool = False


class UpstreamBlock(Block):
    """One endpoint with one credential."""

    dialect: DialectName | None = None
    base_url: BaseUrl | None = None
    credential: CredentialField = CredentialRef()
    idempotency_key: Literal["drop", "forward"] = "drop"
    timeouts: Timeouts = Timeouts()
    breaker: BreakerPolicy = BreakerPolicy()
    concurrency: ConcurrencyLimit = ConcurrencyLimit()
    models: dict[str, ModelFacts] = {}
    headers: Headers = {}
    trust_env: bool = False


class RuleBlock(Block):
    """Under which conditions a call goes elsewhere, and how."""

    name: Annotated[str, Field(min_length=1, max_length=128)]
    priority: int = 0
    when: WhenField = ALWAYS
    use: CandidateField | None = None
    fallbacks: tuple[CandidateField, ...] = ()
    options: Options = {}
    commit: CommitPoint | None = None
    on_break: OnBreak | None = None
    timeouts: CallTimeouts | None = None


class RouteBlock(Block):
    """A path, and where its calls may go."""

    name: Name
    path: RoutePath
    candidates: Annotated[tuple[CandidateField, ...], Field(min_length=1)]
    preset: Literal["resilient", "cheap-first", "strict-budget", "pass-through"] | None = None
    dialect: DialectName | None = None
    rules: tuple[RuleBlock, ...] = ()
    order: Order = Order.LISTED
    commit: CommitPoint = CommitPoint.FIRST_TOKEN
    on_break: OnBreak = OnBreak.ERROR
    on_refusal: Literal["answer", "fallback"] = "answer"
    timeouts: CallTimeouts = CallTimeouts()
    retry: RetryPolicy = RetryPolicy()
    budget: BudgetPolicy = BudgetPolicy()
    usage: UsageMode = UsageMode.AS_IS
    idempotency: IdempotencyPolicy = IdempotencyPolicy()


class Settings(Block):
    """The whole file."""

    listen: ListenBlock = ListenBlock()
    admin: AdminBlock = AdminBlock()
    limits: Limits = Limits()
    database: DatabaseBlock = DatabaseBlock()
    ledger: LedgerTerms = LedgerTerms()
    drain_timeout: Seconds = 20.0
    catalogue: bool = True
    upstreams: dict[Name, UpstreamBlock] = {}
    routes: tuple[RouteBlock, ...] = ()


def top_keys() -> tuple[str, ...]:
    """The keys at the top of the file."""
    return tuple(Settings.model_fields)
