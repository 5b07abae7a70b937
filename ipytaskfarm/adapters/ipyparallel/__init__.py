"""ipyparallel's interface over a farm; ``import ipytaskfarm.ipyparallel as ipp`` is its public name.

`client` and `cluster` connect and start, `views` and `balanced_view` submit, `async_results` wait, `display` shows
output.  Direct views send commands to engines, and load-balanced views submit tasks.  Engines import `references`,
`dependencies` and `engine_calls`, so these modules do not import the client.
"""
