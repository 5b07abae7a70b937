"""Transport: connections between the processes, by unix socket or ZeroMQ, with sessions that lose nothing.

=====================  =======================================================================
``reliable_session``   sequence numbers, acknowledgements, resends, epochs: pure, no socket
``handshake``          identifies the peer, and the packet from which both sides continue
``wire``               shared by both ends of a connection: frames, limits, socket options
``interface``          the two ways of a connection, as sessions see them
``curve_…``            TCP with CURVE by ZeroMQ, for everybody: ``listener`` and ``connection``
``unix_…``             the same by unix socket, for the same user on the same machine
``frame_stream``       frames over a unix socket
``key_challenge``      the proof of a key over a unix socket
``short_poll``         a wait without sleep, for answers that come within a moment
``hub``                the controller's end: a session per peer, over both ways
``peer``               the other end: a client, an agent, a supervisor
``lane``               unix sockets between an agent and its engines
``keys``               the farm's CURVE keys and the roles that they give
=====================  =======================================================================
"""
