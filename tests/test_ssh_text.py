"""What the ssh launcher types, as text; and its hands on the other machine, here."""
