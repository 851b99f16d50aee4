"""Configuration: one YAML file, the environment over it, flags over that.

`load(path, env, overrides) -> engine.config.Config` is the whole of it; `ConfigSource` remembers
its arguments for reloads, `ConfigurationError` lists everything that is wrong, `reload_differences`
names what a reload cannot change.
"""

from steer_proxy.settings.errors import ConfigurationError, Problem
from steer_proxy.settings.load import ConfigSource, load
from steer_proxy.settings.reload import reload_differences

__all__ = ["ConfigSource", "ConfigurationError", "Problem", "load", "reload_differences"]
