"""What tests share: fakes, worlds to run in, polling."""
