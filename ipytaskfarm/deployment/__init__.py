"""How a farm is started, kept running and asked.

==================  ==========================================================================
``settings``        what can be set: the arguments of `Farm`, command-line flags and traits
``home``            the farm's folders on this machine
``farm``            `Farm`: starts, connects, stops
``supervisor``      one per farm: keeps controller and agents running
``daemon``          farms that outlive the process that started them
``agent_groups``    agents on other machines: requested, remembered, removed
``agent_pools``     keeps those groups at their size
``enrolment``       keys of the farm: made, replaced, revoked
``light_client``    asks a farm a question without the weight of the client
==================  ==========================================================================
"""
