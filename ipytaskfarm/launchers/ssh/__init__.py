"""Agents on other machines by ssh."""
