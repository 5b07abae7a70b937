"""ZeroMQ between the processes: sockets, keys, and sessions that lose nothing.

=====================  =======================================================================
``reliable_session``   sequence numbers, acknowledgements, resends, epochs: pure, no socket
``handshake``          who connects, and from where both sides go on
``wire``               what both ends of a connection share: frames, limits, socket options
``hub``                the controller's end: one ROUTER and a session per peer
``peer``               the other end: a client, an agent, a supervisor
``lane``               unix sockets between an agent and its engines
``keys``               the farm's CURVE keys and the roles that they give
=====================  =======================================================================
"""
