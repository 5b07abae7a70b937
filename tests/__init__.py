"""The tests.  Real things first, then fakes, mocks last; nobody sleeps to wait (`tests.support.polling`)."""
