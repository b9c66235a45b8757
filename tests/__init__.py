"""Tests. They import the scripts of algorithms/ as modules."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "algorithms"))
pytest.register_assert_rewrite("tests.helpers")  # its assertions show their values, too
