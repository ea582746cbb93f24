"""The configuration: one YAML file, the environment over it, flags over both; typed and frozen.

`load` reads it once at the edge; nothing else in the gateway reads the file or the environment.
"""

from gateway.config.check import ASK, check_engine, engine_name, ranks_of
from gateway.config.errors import ConfigError
from gateway.config.load import load
from gateway.config.schema import Config, Engine, label_texts
from gateway.config.secret import Secret
from gateway.config.show import show
from gateway.config.summary import summary
from gateway.config.url import EngineUrl, parse_engine_url

__all__ = [
    "ASK",
    "Config",
    "ConfigError",
    "Engine",
    "EngineUrl",
    "Secret",
    "check_engine",
    "engine_name",
    "label_texts",
    "load",
    "parse_engine_url",
    "ranks_of",
    "show",
    "summary",
]
