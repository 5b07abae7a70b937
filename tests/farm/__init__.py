"""Tests on real farms: real controllers, agents and engines on this machine."""
