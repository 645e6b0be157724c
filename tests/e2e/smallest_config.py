"""`smallest` as a config file, for runs in processes of their own."""

from maskdino_jax.config import Config
from tests.e2e.conftest import smallest


def get_config() -> Config:
    return smallest(steps=6)
