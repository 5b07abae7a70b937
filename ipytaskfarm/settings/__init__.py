"""What can be set about a farm: `declarations` has each setting once, `checks` makes the values that are kept."""
