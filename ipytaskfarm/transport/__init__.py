"""Transport: ZeroMQ between the processes, with sockets, keys, and sessions that lose nothing.

=====================  =======================================================================
``reliable_session``   sequence numbers, acknowledgements, resends, epochs: pure, no socket
``handshake``          identifies the peer, and the packet from which both sides continue
``wire``               shared by both ends of a connection: frames, limits, socket options
``hub``                the controller's end: one ROUTER and a session per peer
``peer``               the other end: a client, an agent, a supervisor
``lane``               unix sockets between an agent and its engines
``keys``               the farm's CURVE keys and the roles that they give
=====================  =======================================================================
"""
