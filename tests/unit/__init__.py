"""Tests of one module at a time: no farm, no network beyond loopback."""
