"""Tests of the proxy: engine."""
