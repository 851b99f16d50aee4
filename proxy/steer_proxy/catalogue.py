"""The well-known providers: where they are, how they speak, and how their SDKs find Steer.

Plain facts. `steer_proxy.settings` makes an upstream and a route of each, unless the configuration
says otherwise; `steer env` prints their variables. Which variable an SDK reads, and whether it
appends `/v1` itself, was found by running the SDKs against a local server, except where noted.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from steer_policies.config import DialectName

#: Header and prefix by which each dialect presents a credential.
CREDENTIAL_OF: Final = MappingProxyType(
    {
        DialectName.OPENAI: ("authorization", "Bearer "),
        DialectName.ANTHROPIC: ("x-api-key", ""),
        DialectName.GEMINI: ("x-goog-api-key", ""),
        DialectName.HTTP: ("authorization", "Bearer "),
    }
)


@dataclass(frozen=True, slots=True)
class Variable:
    """An environment variable by which an SDK is given its base URL.

    `without` is the end of the route's path that the SDK appends itself.
    """

    name: str
    used_by: str
    without: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """One provider: its public address, and the route that leads there.

    Each alias is a path that SDKs are known to produce, and the path it stands for.
    """

    name: str
    path: str
    base_url: str
    dialect: DialectName = DialectName.OPENAI
    aliases: tuple[tuple[str, str], ...] = ()
    variables: tuple[Variable, ...] = ()

    @property
    def credential_header(self) -> str:
        """The lower-case header that carries this provider's credential."""
        return CREDENTIAL_OF[self.dialect][0]


_ALL: Final = (
    Provider(
        name="openai",
        path="/openai/v1",
        base_url="https://api.openai.com/v1",
        variables=(
            Variable("OPENAI_BASE_URL", "openai, ai-sdk, langchain-openai, litellm"),
            Variable("OPENAI_API_BASE", "langchain-openai"),
        ),
    ),
    Provider(
        name="anthropic",
        path="/anthropic",
        base_url="https://api.anthropic.com",
        dialect=DialectName.ANTHROPIC,
        # The AI SDK expects a base URL that ends in /v1; given the root it posts to /messages.
        aliases=(("/anthropic/messages", "/anthropic/v1/messages"),),
        variables=(
            Variable("ANTHROPIC_BASE_URL", "anthropic, ai-sdk, litellm"),
            Variable("ANTHROPIC_API_URL", "langchain-anthropic"),
        ),
    ),
    Provider(
        name="gemini",
        path="/gemini",
        base_url="https://generativelanguage.googleapis.com",
        dialect=DialectName.GEMINI,
        variables=(
            Variable("GOOGLE_GEMINI_BASE_URL", "google-genai"),
            # Read in litellm's code, not run.
            Variable("GEMINI_API_BASE", "litellm"),
        ),
    ),
    Provider(
        name="mistral",
        path="/mistral/v1",
        base_url="https://api.mistral.ai/v1",
        variables=(
            # Both read in code, not run. The mistralai SDK itself reads no variable.
            Variable("MISTRAL_BASE_URL", "langchain-mistralai"),
            Variable("MISTRAL_API_BASE", "litellm"),
        ),
    ),
    Provider(
        name="groq",
        path="/groq/openai/v1",
        base_url="https://api.groq.com/openai/v1",
        variables=(Variable("GROQ_BASE_URL", "groq", without="/openai/v1"),),
    ),
    Provider(
        name="cohere",
        path="/cohere/compatibility/v1",
        base_url="https://api.cohere.ai/compatibility/v1",
    ),
    # Cohere's own SDK speaks Cohere's own API: passed on as it is, and not steered.
    Provider(
        name="cohere-native",
        path="/cohere",
        base_url="https://api.cohere.com",
        dialect=DialectName.HTTP,
        variables=(Variable("CO_API_URL", "cohere"),),
    ),
    Provider(name="deepseek", path="/deepseek/v1", base_url="https://api.deepseek.com/v1"),
    Provider(name="xai", path="/xai/v1", base_url="https://api.x.ai/v1"),
    Provider(
        name="together",
        path="/together/v1",
        base_url="https://api.together.xyz/v1",
        # For those who set the variable with /v1: the SDK appends it once more.
        aliases=(("/together/v1/v1", "/together/v1"),),
        variables=(Variable("TOGETHER_BASE_URL", "together", without="/v1"),),
    ),
    Provider(
        name="fireworks", path="/fireworks/v1", base_url="https://api.fireworks.ai/inference/v1"
    ),
    Provider(name="openrouter", path="/openrouter/v1", base_url="https://openrouter.ai/api/v1"),
    Provider(name="ollama", path="/ollama/v1", base_url="http://127.0.0.1:11434/v1"),
    Provider(name="vllm", path="/vllm/v1", base_url="http://127.0.0.1:8000/v1"),
)

#: The well-known providers by name, which is also the name of their upstream and route.
PROVIDERS: Final = MappingProxyType({provider.name: provider for provider in _ALL})

#: The route for any OpenAI-compatible client that is only told a host: its name, path and home.
DEFAULT_ROUTE: Final = ("default", "/v1", "openai")
