"""Tests of the proxy: http."""
